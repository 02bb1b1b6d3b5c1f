//! Messages of nfnetlink, and batches of them.
//!
//! Numbers are those of linux/netfilter/nfnetlink.h and nf_tables.h.

use crate::network::wire::{Attributes, Error, NLM_F_ACK, NLM_F_APPEND, NLM_F_CREATE, Wire, put};

const NFNL_MSG_BATCH_BEGIN: u16 = 0x10;
const NFNL_MSG_BATCH_END: u16 = 0x11;
const NFNL_SUBSYS_NFTABLES: u16 = 10;
const NFT_MSG_GETTABLE: u16 = 1;
/// Rules for IPv4 and IPv6 in one table.
const NFPROTO_INET: u8 = 1;

/// What one message does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verb {
    NewTable,
    DeleteTable,
    NewChain,
    NewRule,
    NewSet,
    NewElements,
    DeleteElements,
}

impl Verb {
    fn number(self) -> u16 {
        match self {
            Verb::NewTable => 0,
            Verb::DeleteTable => 2,
            Verb::NewChain => 3,
            Verb::NewRule => 6,
            Verb::NewSet => 9,
            Verb::NewElements => 12,
            Verb::DeleteElements => 14,
        }
    }

    fn flags(self) -> u16 {
        match self {
            Verb::DeleteTable | Verb::DeleteElements => 0,
            Verb::NewRule => NLM_F_CREATE | NLM_F_APPEND,
            _ => NLM_F_CREATE,
        }
    }
}

/// Messages that the kernel carries out all together or not at all.
#[derive(Debug, Default)]
pub struct Batch {
    messages: Vec<(Verb, Attributes)>,
}

impl Batch {
    pub fn push(&mut self, verb: Verb, attributes: Attributes) {
        self.messages.push((verb, attributes));
    }

    /// The same messages, each to be carried out by itself.
    pub fn into_single(self) -> Vec<Batch> {
        let single = |message| Batch {
            messages: vec![message],
        };
        self.messages.into_iter().map(single).collect()
    }

    /// Carries out the batch as one transaction.
    pub fn commit(&self, wire: &mut Wire, operation: &'static str, object: &str) -> Result<(), Error> {
        let mut bytes = Vec::new();
        put(&mut bytes, NFNL_MSG_BATCH_BEGIN, 0, wire.next(), &boundary());
        let mut last = 0;
        for (position, (verb, attributes)) in self.messages.iter().enumerate() {
            last = wire.next();
            // One acknowledgement is enough: errors come unasked.
            let ack = if position + 1 == self.messages.len() {
                NLM_F_ACK
            } else {
                0
            };
            let mut body = vec![NFPROTO_INET, 0, 0, 0];
            body.extend(attributes.as_bytes());
            put(
                &mut bytes,
                NFNL_SUBSYS_NFTABLES << 8 | verb.number(),
                verb.flags() | ack,
                last,
                &body,
            );
        }
        put(&mut bytes, NFNL_MSG_BATCH_END, 0, wire.next(), &boundary());
        wire.exchange(&bytes, last, operation, object, |_| Ok(()))
    }
}

/// Asks for a table. `ENOENT`: there is none.
pub fn get_table(wire: &mut Wire, name: &str) -> Result<(), Error> {
    let mut bytes = Vec::new();
    let mut body = vec![NFPROTO_INET, 0, 0, 0];
    body.extend(Attributes::new().text(1, name).as_bytes());
    let sequence = wire.next();
    put(
        &mut bytes,
        NFNL_SUBSYS_NFTABLES << 8 | NFT_MSG_GETTABLE,
        NLM_F_ACK,
        sequence,
        &body,
    );
    wire.exchange(&bytes, sequence, "look up nftables table", name, |_| Ok(()))
}

/// The body of a message that begins or ends a batch for nf_tables.
fn boundary() -> [u8; 4] {
    let [high, low] = NFNL_SUBSYS_NFTABLES.to_be_bytes();
    [0, 0, high, low]
}
