//! Port-forward.

use std::collections::HashMap;

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpListener,
};

use super::{
    websocket_client::{BINARY, CLOSE},
    *,
};

const V1: &str = "portforward.k8s.io";

/// A server on a port of this host that sends back what it gets until its end.
async fn echo() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let (mut read, mut write) = stream.split();
                let _ = tokio::io::copy(&mut read, &mut write).await;
                let _ = write.shutdown().await;
            });
        }
    });
    port
}

/// A port that nobody listens on.
async fn nobody() -> u16 {
    TcpListener::bind("127.0.0.1:0")
        .await
        .unwrap()
        .local_addr()
        .unwrap()
        .port()
}

#[tokio::test]
async fn a_connection_half_closes_both_ways() {
    let served = Served::start().await;
    let port = echo().await;
    let mut client = SpdyClient::connect(&served.forward(&[]), V1).await;
    for request in ["0", "1"] {
        let (error, data) = client.open_pair(port, request).await;
        client.write.data(data, b"hello").await;
        assert_eq!(client.read.event().await, Event::Data(data, "hello".into()));
        client.write.fin(data).await;
        assert_eq!(client.read.event().await, Event::Fin(data));
        assert_eq!(client.read.event().await, Event::Fin(error));
    }
    client.write.goaway().await;
    assert_eq!(client.read.event().await, Event::GoAway);
    assert_eq!(client.read.event().await, Event::Closed);
}

#[tokio::test]
async fn a_refused_connection_is_told_and_the_others_go_on() {
    let served = Served::start().await;
    let (open, closed) = (echo().await, nobody().await);
    let mut client = SpdyClient::connect(&served.forward(&[]), V1).await;
    let (_, data) = client.open_pair(open, "0").await;
    let (error, refused) = client.open_pair(closed, "1").await;
    let Event::Data(id, message) = client.read.event().await else {
        panic!()
    };
    let message = String::from_utf8(message.to_vec()).unwrap();
    assert_eq!(id, error);
    assert!(
        message.contains(&format!("error forwarding port {closed} to pod s")),
        "{message}"
    );
    assert_eq!(client.read.event().await, Event::Reset(refused));
    assert_eq!(client.read.event().await, Event::Fin(error));
    client.write.data(data, b"still here").await;
    assert_eq!(client.read.event().await, Event::Data(data, "still here".into()));
}

#[tokio::test]
async fn a_broken_connection_is_reset_without_a_message() {
    let served = Served::start().await;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let mut client = SpdyClient::connect(&served.forward(&[]), V1).await;
    let (error, data) = client.open_pair(port, "0").await;
    client.write.data(data, b"unread").await;
    let (pod, _) = listener.accept().await.unwrap();
    pod.peek(&mut [0; 6]).await.unwrap();
    // Closed with unread bytes: the kernel resets the connection.
    drop(pod);
    assert_eq!(client.read.event().await, Event::Reset(data));
    assert_eq!(client.read.event().await, Event::Fin(error));
}

#[tokio::test]
async fn streams_without_port_or_partner_are_refused_or_ended() {
    let config = config::Streaming {
        creation_timeout: 1,
        ..Default::default()
    };
    let served = Served::with(config).await;
    let mut client = SpdyClient::connect(&served.forward(&[]), V1).await;
    for headers in [
        [("streamtype", "data"), ("port", "0"), ("requestid", "1")],
        [("streamtype", "data"), ("port", "70000"), ("requestid", "1")],
        [("streamtype", "stdin"), ("port", "80"), ("requestid", "1")],
    ] {
        let id = client.write.open(headers.into()).await;
        assert_eq!(client.read.event().await, Event::Reset(id));
    }
    let headers = [("streamtype", "error"), ("port", "80"), ("requestid", "1")];
    let error = client.write.open(headers.into()).await;
    assert_eq!(client.read.event().await, Event::Reply(error));
    let Event::Data(_, message) = client.read.event().await else {
        panic!()
    };
    assert!(message.starts_with(b"timed out waiting"));
    assert_eq!(client.read.event().await, Event::Fin(error));
    client.write.ping(1).await;
    assert_eq!(client.read.event().await, Event::Ping(1));
}

#[tokio::test]
async fn clients_without_request_ids_are_paired() {
    let served = Served::start().await;
    let port = echo().await.to_string();
    let mut client = SpdyClient::connect(&served.forward(&[]), V1).await;
    let mut data = 0;
    for kind in ["error", "data"] {
        data = client
            .write
            .open([("streamtype", kind), ("port", port.as_str())].into())
            .await;
        assert_eq!(client.read.event().await, Event::Reply(data));
    }
    client.write.data(data, b"old").await;
    assert_eq!(client.read.event().await, Event::Data(data, "old".into()));
}

#[tokio::test(flavor = "multi_thread")]
async fn fifty_connections_and_one_reset_among_them() {
    let served = Served::start().await;
    let port = echo().await.to_string();
    let SpdyClient { mut write, mut read } = SpdyClient::connect(&served.forward(&[]), V1).await;
    let mut pairs = Vec::new();
    for request in 0..50 {
        pairs.push(write.open_pair(&port, &request.to_string()).await);
    }
    let victim = pairs[25].1;
    let writer = tokio::spawn({
        let pairs = pairs.clone();
        async move {
            for round in 0..64_u8 {
                for (_, data) in &pairs {
                    if *data == victim && round == 32 {
                        write.reset(victim).await;
                    } else if *data != victim || round < 32 {
                        write.data(*data, &[round; 8192]).await;
                    }
                }
            }
            for (_, data) in pairs.iter().filter(|(_, data)| *data != victim) {
                write.fin(*data).await;
            }
            write
        }
    });
    let (mut got, mut ended): (HashMap<u32, Vec<u8>>, usize) = (HashMap::new(), 0);
    while ended < 50 {
        match read.event().await {
            Event::Data(id, bytes) => got.entry(id).or_default().extend_from_slice(&bytes),
            Event::Fin(id) if pairs.iter().any(|(error, _)| *error == id) => ended += 1,
            Event::Fin(_) | Event::Reply(_) | Event::Reset(_) => {}
            other => panic!("{other:?}"),
        }
    }
    let whole: Vec<u8> = (0..64_u8).flat_map(|round| [round; 8192]).collect();
    for (_, data) in pairs.iter().filter(|(_, data)| *data != victim) {
        assert!(got[data] == whole, "stream {data} has {} bytes", got[data].len());
    }
    assert!(whole.starts_with(got.get(&victim).map_or(&[][..], |bytes| bytes)));
    writer.await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_port_carries_every_byte_both_ways() {
    let (served, length) = (Served::start().await, large());
    let port = echo().await;
    let mut client = SpdyClient::connect(&served.forward(&[]), V1).await;
    let (_, data) = client.open_pair(port, "0").await;
    let start = Instant::now();
    let SpdyClient { mut write, mut read } = client;
    let sent = tokio::spawn(async move {
        let mut pattern = Pattern::new(length);
        while let Some(piece) = pattern.next() {
            write.data(data, &piece).await;
        }
        write.fin(data).await;
        (pattern.digest(), write)
    });
    let mut hash = Sha256::new();
    loop {
        match read.event().await {
            Event::Data(_, bytes) => hash.update(&bytes),
            Event::Fin(id) if id == data => break,
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(sent.await.unwrap().0, hash.finalize().to_vec());
    say_throughput("port-forward over SPDY, there and back", length, start);
}

#[tokio::test]
async fn websocket_has_two_channels_for_each_port() {
    let served = Served::start().await;
    let (open, closed) = (echo().await, nobody().await);
    let url = format!("{}?port={open},{closed}", served.forward(&[]));
    let mut client = WebSocketClient::connect(&url, "v4.channel.k8s.io").await;
    for (channel, port) in [(0, open), (1, open), (2, closed), (3, closed)] {
        let [low, high] = port.to_le_bytes();
        assert_eq!(
            client.read.frame().await.unwrap(),
            (BINARY, vec![channel, low, high])
        );
    }
    let (_, message) = client.read.frame().await.unwrap();
    assert_eq!(message[0], 3);
    assert!(
        String::from_utf8(message)
            .unwrap()
            .contains("error forwarding port")
    );
    client.write.data(0, b"hello").await;
    assert_eq!(client.read.frame().await.unwrap(), (BINARY, b"\0hello".to_vec()));
}

#[tokio::test]
async fn websocket_ends_when_the_pod_does() {
    let served = Served::start().await;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let mut client = WebSocketClient::connect(&served.forward(&[port]), "").await;
    let (mut pod, _) = listener.accept().await.unwrap();
    client.write.data(0, b"ask").await;
    let mut asked = [0; 3];
    pod.read_exact(&mut asked).await.unwrap();
    pod.write_all(b"answer").await.unwrap();
    drop(pod);
    let mut data = Vec::new();
    loop {
        match client.read.frame().await.unwrap() {
            (BINARY, message) if message[0] == 0 => data.extend_from_slice(&message[1..]),
            (BINARY, _) => {}
            (CLOSE, _) => break,
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(data[2..], *b"answer");
}

#[tokio::test]
async fn a_tunnel_carries_spdy() {
    use crate::stream::spdy::{
        frame::{put_data_head, put_syn_stream},
        headers::Encoder,
    };
    let served = Served::start().await;
    let port = echo().await.to_string();
    let mut client = WebSocketClient::connect(&served.forward(&[]), "SPDY/3.1+portforward.k8s.io").await;
    let mut encoder = Encoder::new().unwrap();
    let mut bytes = bytes::BytesMut::new();
    for (id, kind) in [(1, "error"), (3, "data")] {
        let headers = [("streamtype", kind), ("port", port.as_str()), ("requestid", "0")].into();
        put_syn_stream(&mut bytes, id, 0, &encoder.encode(&headers).unwrap());
    }
    put_data_head(&mut bytes, 3, false, 6);
    bytes.extend_from_slice(b"tunnel");
    // Frames of the tunnel need not be those of what is in it.
    for piece in bytes.chunks(7) {
        client.write.frame(true, BINARY, piece).await;
    }
    let mut carried = Vec::new();
    while !carried.ends_with(b"tunnel") {
        let (opcode, payload) = client.read.frame().await.unwrap();
        assert_eq!(opcode, BINARY);
        carried.extend_from_slice(&payload);
    }
    client.write.frame(true, CLOSE, &1000_u16.to_be_bytes()).await;
    while let Some((opcode, _)) = client.read.frame().await {
        assert!(matches!(opcode, BINARY | CLOSE));
    }
}
