//! The Stream RPCs: the items of a list, each once, in messages of moderate size,
//! then the end. A list of nothing is an end without a message.

use prost::Message;
use tonic::Status;

/// Bytes of items in one message: far below every client's limit, and few messages
/// all the same.
const CHUNK: usize = 1 << 20;

/// What such an RPC answers.
pub type Chunks<T> = tokio_stream::Iter<std::vec::IntoIter<Result<T, Status>>>;

/// Splits a list; `wrap` makes a message of a part of it, which has at least one item.
pub fn chunks<I: Message, T>(items: Vec<I>, wrap: impl Fn(Vec<I>) -> T) -> Chunks<T> {
    split(items, wrap, CHUNK)
}

fn split<I: Message, T>(items: Vec<I>, wrap: impl Fn(Vec<I>) -> T, limit: usize) -> Chunks<T> {
    let mut messages = Vec::new();
    let (mut part, mut size) = (Vec::new(), 0);
    for item in items {
        let length = item.encoded_len();
        if !part.is_empty() && size + length > limit {
            messages.push(Ok(wrap(std::mem::take(&mut part))));
            size = 0;
        }
        size += length;
        part.push(item);
    }
    if !part.is_empty() {
        messages.push(Ok(wrap(part)));
    }
    tokio_stream::iter(messages)
}

#[cfg(test)]
mod tests {
    use futures_util::StreamExt;

    use super::*;
    use crate::proto::cri::Container;

    #[tokio::test]
    async fn each_item_comes_once() {
        let item = |n: usize| Container {
            id: format!("{n:0>100}"),
            ..Default::default()
        };
        for count in [0, 1, 2, 7, 100] {
            let items: Vec<_> = (0..count).map(item).collect();
            let parts: Vec<_> = split(items.clone(), |part| part, 250).collect().await;
            let parts: Vec<Vec<Container>> = parts.into_iter().map(Result::unwrap).collect();
            assert!(parts.iter().all(|part| (1..=2).contains(&part.len())));
            assert_eq!(parts.concat(), items);
        }
        // One that is larger than a message should be goes alone.
        let parts: Vec<_> = split(vec![item(1), item(2)], |part| part, 10).collect().await;
        assert_eq!(parts.len(), 2);
    }
}
