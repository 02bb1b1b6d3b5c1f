//! Connections of streaming clients, fed with anything, in one piece and in many.

use std::collections::BTreeMap;

use bytes::BytesMut;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex, split},
    runtime::Builder,
    task::{JoinSet, yield_now},
};

use super::{
    link::{Inbound, Item},
    spdy::{self, headers},
    websocket::{self, Codec},
};

/// So few that the replies never fill the queue for them: a client that floods is
/// refused, and when is a matter of who runs first.
const MOST: usize = 1400;

/// What came in on each stream: data, and how it ended.
type Seen = BTreeMap<u32, (Vec<u8>, &'static str)>;

/// A SPDY connection ends by itself, and its streams carry the same however the bytes
/// are cut, and no more bytes than were sent.
pub fn spdy(data: &[u8]) {
    let data = &data[..data.len().min(MOST)];
    let whole = run(serve_spdy(data, data.len().max(1)));
    let pieces = run(serve_spdy(data, 1 + data.len() % 29));
    assert_eq!(whole, pieces);
    assert!(total(&whole.1) <= data.len());
    for headers in &whole.0 {
        let block = headers::Encoder::new().and_then(|mut encoder| encoder.encode(headers));
        let again = block.and_then(|block| headers::Decoder::default().decode(&block));
        assert_eq!(again.as_ref(), Ok(headers));
    }
}

/// A WebSocket connection likewise.
pub fn websocket(data: &[u8]) {
    let Some((first, data)) = data.split_first() else {
        return;
    };
    let codec = [
        Codec::Binary { closes: true },
        Codec::Binary { closes: false },
        Codec::Base64,
        Codec::Raw,
    ][usize::from(first % 4)];
    let data = &data[..data.len().min(MOST)];
    let whole = run(serve_websocket(codec, data, data.len().max(1)));
    let pieces = run(serve_websocket(codec, data, 1 + data.len() % 29));
    assert!(total(&whole) <= data.len());
    if codec == Codec::Base64 {
        // What stands before a wrong letter is taken as far as it came in time.
        for (whole, pieces) in whole.values().zip(pieces.values()) {
            let same = whole.0.len().min(pieces.0.len());
            assert_eq!(whole.0[..same], pieces.0[..same]);
        }
    } else {
        assert_eq!(whole, pieces);
    }
}

fn total(seen: &Seen) -> usize {
    seen.values().map(|(data, _)| data.len()).sum()
}

fn run<T>(future: impl Future<Output = T>) -> T {
    let runtime = Builder::new_current_thread().enable_time().build();
    runtime.expect("make a runtime").block_on(future)
}

/// Sends the bytes in pieces and reads to the end.
async fn client(io: DuplexStream, data: &[u8], piece: usize) {
    let (mut read, mut write) = split(io);
    let send = async {
        for piece in data.chunks(piece) {
            if write.write_all(piece).await.is_err() {
                break;
            }
            yield_now().await;
        }
        // The other end may be gone.
        let _ = write.shutdown().await;
    };
    let receive = async {
        let _ = read.read_to_end(&mut Vec::new()).await;
    };
    tokio::join!(send, receive);
}

async fn serve_spdy(data: &[u8], piece: usize) -> (Vec<headers::Headers>, Seen) {
    let (inner, outer) = duplex(1 << 16);
    let mut connection = spdy::Connection::serve(inner, BytesMut::new(), None);
    let server = async {
        let (mut opened, mut drains) = (Vec::new(), JoinSet::new());
        while let Some(stream) = connection.incoming.recv().await {
            opened.push(stream.headers);
            drains.spawn(drain(stream.id, stream.inbound));
        }
        connection.link.gone().await;
        let seen = drains.join_all().await.into_iter().collect();
        drop(connection);
        (opened, seen)
    };
    tokio::join!(client(outer, data, piece), server).1
}

async fn serve_websocket(codec: Codec, data: &[u8], piece: usize) -> Seen {
    let (inner, outer) = duplex(1 << 16);
    let (link, channels) = websocket::serve(inner, BytesMut::new(), None, codec, &[true, false, true]);
    let server = async {
        let mut drains = JoinSet::new();
        for (number, channel) in (0..).zip(channels) {
            if let Some(inbound) = channel.inbound {
                drains.spawn(drain(number, inbound));
            }
        }
        link.gone().await;
        let seen = drains.join_all().await.into_iter().collect();
        drop(link);
        seen
    };
    tokio::join!(client(outer, data, piece), server).1
}

async fn drain(id: u32, mut inbound: Inbound) -> (u32, (Vec<u8>, &'static str)) {
    let mut data = Vec::new();
    let end = loop {
        match inbound.next().await {
            Some(Item::Data(chunk)) => data.extend_from_slice(&chunk.bytes),
            Some(Item::End) => break "closed",
            Some(Item::Reset) => break "reset",
            None => break "gone",
        }
    };
    (id, (data, end))
}
