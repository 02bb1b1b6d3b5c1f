//! The connection to berthd: both services of the CRI on one Unix socket.

use std::{error::Error as _, path::Path};

use tonic::transport::{Channel, Endpoint};

use super::Error;
use crate::proto::cri::{
    image_service_client::ImageServiceClient, runtime_service_client::RuntimeServiceClient,
};

/// Largest answer that is read: lists of a full node are some megabytes.
const MESSAGE_BYTES: usize = 16 << 20;

/// Both services; cheap to clone.
#[derive(Clone, Debug)]
pub struct Client {
    pub runtime: RuntimeServiceClient<Channel>,
    pub images: ImageServiceClient<Channel>,
}

impl Client {
    /// `address` is `unix:///path`; a bare absolute path is taken too.
    pub async fn connect(address: &str) -> Result<Client, Error> {
        let path = address.strip_prefix("unix://").unwrap_or(address);
        if !path.starts_with('/') {
            return Err(Error::Address(address.into()));
        }
        let endpoint =
            Endpoint::try_from(format!("unix://{path}")).map_err(|_| Error::Address(address.into()))?;
        let channel = endpoint.connect().await.map_err(|error| Error::Connect {
            path: Path::new(path).into(),
            reason: innermost(&error),
        })?;
        Ok(Client {
            runtime: RuntimeServiceClient::new(channel.clone()).max_decoding_message_size(MESSAGE_BYTES),
            images: ImageServiceClient::new(channel).max_decoding_message_size(MESSAGE_BYTES),
        })
    }
}

/// The system's own words; what tonic wraps around them is "transport error".
fn innermost(error: &tonic::transport::Error) -> String {
    let mut words = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        words = error.to_string();
        source = error.source();
    }
    words
}
