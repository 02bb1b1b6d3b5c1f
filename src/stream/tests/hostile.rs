//! Requests and frames that no client should send.

use std::time::Duration;

use bytes::BytesMut;
use proptest::{prelude::*, test_runner::TestRunner};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, duplex},
    time::timeout,
};

use super::{spdy_client::request, *};
use crate::stream::{
    spdy::{
        Connection,
        frame::{put_data_head, put_goaway, put_ping, put_syn_stream},
        headers::Encoder,
    },
    websocket::{Codec, serve},
};

const UPGRADE: &str =
    "Connection: Upgrade\r\nUpgrade: SPDY/3.1\r\nX-Stream-Protocol-Version: v4.channel.k8s.io\r\n";

#[tokio::test]
async fn tokens_are_needed_and_spent() {
    let served = Served::start().await;
    let url = served.exec(&["true"], false);
    let wrong_verb = url.replace("/exec/", "/attach/");
    let unknown = url.replace("/exec/", "/exec/x");
    assert_eq!(request(&unknown, UPGRADE).await.0, 404);
    assert_eq!(request(&url.replace("/exec/", "/other/"), UPGRADE).await.0, 404);
    // What is no upgrade does not spend the token; an upgrade does.
    assert_eq!(request(&url, "").await.0, 400);
    assert_eq!(
        request(&url, "Connection: Upgrade\r\nUpgrade: h2c\r\n").await.0,
        400
    );
    assert_eq!(request(&url, UPGRADE).await.0, 101);
    assert_eq!(request(&url, UPGRADE).await.0, 404);
    assert_eq!(
        request(
            &served.exec(&["true"], false).replace("/exec/", "/attach/"),
            UPGRADE
        )
        .await
        .0,
        404
    );
    assert_eq!(request(&wrong_verb, UPGRADE).await.0, 404);
}

#[test]
fn requests_are_checked() {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    let served = runtime.block_on(Served::start());
    let request = |stdin, stdout, stderr, tty| ExecRequest {
        container: "c".into(),
        command: vec!["x".into()],
        stdin,
        stdout,
        stderr,
        tty,
    };
    assert!(served.urls.exec(request(false, false, false, false)).is_err());
    assert!(served.urls.exec(request(true, true, true, true)).is_err());
    assert!(served.urls.exec(request(true, false, false, false)).is_ok());
    let nameless = ExecRequest {
        container: String::new(),
        ..request(true, true, true, false)
    };
    assert!(served.urls.exec(nameless).is_err());
}

/// Feeds bytes to a SPDY connection and expects it to end by itself.
async fn spdy_takes(bytes: Vec<u8>) {
    let (inner, outer) = duplex(1 << 16);
    let mut connection = Connection::serve(inner, BytesMut::new(), None);
    let (mut read, mut write) = tokio::io::split(outer);
    let client = async {
        let _ = write.write_all(&bytes).await;
        let _ = write.shutdown().await;
        let _ = read.read_to_end(&mut Vec::new()).await;
    };
    let server = async {
        while let Some(stream) = connection.incoming.recv().await {
            drop(stream.accept().await);
        }
        connection.link.gone().await;
        drop(connection);
    };
    timeout(Duration::from_secs(20), async { tokio::join!(client, server) })
        .await
        .unwrap();
}

/// Feeds bytes to a WebSocket connection and expects it to end by itself.
async fn websocket_takes(codec: Codec, bytes: Vec<u8>) {
    let (inner, outer) = duplex(1 << 16);
    let (link, channels) = serve(inner, BytesMut::new(), None, codec, &[true, false, true]);
    drop(channels);
    let (mut read, mut write) = tokio::io::split(outer);
    let client = async {
        let _ = write.write_all(&bytes).await;
        let _ = write.shutdown().await;
        let _ = read.read_to_end(&mut Vec::new()).await;
    };
    let server = async {
        link.gone().await;
        drop(link);
    };
    timeout(Duration::from_secs(20), async { tokio::join!(client, server) })
        .await
        .unwrap();
}

fn run(future: impl Future<Output = ()>) {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap()
        .block_on(future);
}

#[test]
fn any_bytes_end_a_connection_and_nothing_else() {
    let mut runner = TestRunner::new(ProptestConfig {
        failure_persistence: None,
        ..ProptestConfig::with_cases(64)
    });
    let bytes = proptest::collection::vec(any::<u8>(), 0..256);
    runner
        .run(&bytes, |bytes| {
            run(spdy_takes(bytes.clone()));
            run(websocket_takes(Codec::Binary { closes: true }, bytes.clone()));
            run(websocket_takes(Codec::Base64, bytes));
            Ok(())
        })
        .unwrap();
}

#[test]
fn valid_frames_with_damage_end_a_connection_and_nothing_else() {
    let mut runner = TestRunner::new(ProptestConfig {
        failure_persistence: None,
        ..ProptestConfig::with_cases(64)
    });
    let mut bytes = BytesMut::new();
    let mut encoder = Encoder::new().unwrap();
    for id in [1, 3, 5] {
        let block = encoder
            .encode(&[("streamtype", "data"), ("port", "80")].into())
            .unwrap();
        put_syn_stream(&mut bytes, id, 0, &block);
        put_data_head(&mut bytes, id, false, 4);
        bytes.extend_from_slice(b"data");
        put_ping(&mut bytes, id);
    }
    put_goaway(&mut bytes, 0, false);
    let places = (0..bytes.len(), any::<u8>(), 0..bytes.len(), any::<u8>());
    runner
        .run(&places, |(a, x, b, y)| {
            let mut damaged = bytes.to_vec();
            damaged[a] = x;
            damaged[b] = y;
            run(spdy_takes(damaged));
            Ok(())
        })
        .unwrap();
}

#[tokio::test]
async fn a_flood_of_pings_is_cut_off() {
    let (inner, outer) = duplex(1024);
    let connection = Connection::serve(inner, BytesMut::new(), None);
    // Nothing is read: the replies pile up.
    let (_read, mut write) = tokio::io::split(outer);
    let mut ping = BytesMut::new();
    put_ping(&mut ping, 1);
    let flood = async { while write.write_all(&ping).await.is_ok() {} };
    timeout(Duration::from_secs(20), async {
        tokio::select! {
            () = flood => {}
            () = connection.link.gone() => {}
        }
    })
    .await
    .unwrap();
}
