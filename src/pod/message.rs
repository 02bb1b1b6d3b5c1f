//! A protobuf message in a JSON record, for `#[serde(with = "message")]`: base64 of
//! its bytes. A field that a later version of the interface adds is kept.

use base64::{Engine, engine::general_purpose::STANDARD as BASE64};
use prost::Message;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

pub fn serialize<M: Message, S: Serializer>(message: &Option<M>, to: S) -> Result<S::Ok, S::Error> {
    let text = message
        .as_ref()
        .map(|message| BASE64.encode(message.encode_to_vec()));
    text.serialize(to)
}

pub fn deserialize<'de, M: Message + Default, D: Deserializer<'de>>(from: D) -> Result<Option<M>, D::Error> {
    let Some(text) = Option::<String>::deserialize(from)? else {
        return Ok(None);
    };
    let bytes = BASE64.decode(text).map_err(de::Error::custom)?;
    M::decode(bytes.as_slice()).map(Some).map_err(de::Error::custom)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::cri::LinuxContainerResources;

    #[derive(Debug, PartialEq, Serialize, Deserialize)]
    struct Record {
        #[serde(default, with = "super")]
        resources: Option<LinuxContainerResources>,
    }

    #[test]
    fn there_and_back() {
        let resources = LinuxContainerResources {
            memory_limit_in_bytes: 7,
            unified: [("memory.high".into(), "8".into())].into(),
            ..Default::default()
        };
        for record in [
            Record { resources: None },
            Record {
                resources: Some(resources),
            },
        ] {
            let text = serde_json::to_string(&record).unwrap();
            assert_eq!(serde_json::from_str::<Record>(&text).unwrap(), record);
        }
        // A record of a version that had no such field.
        assert_eq!(serde_json::from_str::<Record>("{}").unwrap().resources, None);
        assert!(serde_json::from_str::<Record>(r#"{"resources": "?"}"#).is_err());
    }
}
