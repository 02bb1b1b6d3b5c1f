//! Registries that want to know who asks: basic and bearer.

use base64::{Engine, engine::general_purpose::STANDARD};
use e2e::{
    Image, Node, Registry, Result,
    client::spec,
    cri,
    proxy::{Fault, IDENTITY, Proxy},
    registry::{PASSWORD, USER},
};
use tonic::Code;

fn by_password() -> Option<cri::AuthConfig> {
    Some(cri::AuthConfig {
        username: USER.into(),
        password: PASSWORD.into(),
        ..Default::default()
    })
}

#[tokio::test]
async fn basic() -> Result {
    let registry = Registry::with_password().await?;
    let pushed = Image::busybox().push(&registry, "private/app:1").await?;
    let node = Node::start().await?;
    let client = node.client().await?;

    let error = client.pull(&pushed.tag).await.unwrap_err();
    if !node.is_peer() {
        assert_eq!(error.code(), Code::Unauthenticated, "{error}");
        assert!(error.message().contains(&pushed.tag), "{error}");
    }
    let wrong = cri::AuthConfig {
        username: USER.into(),
        password: "not it".into(),
        ..Default::default()
    };
    let error = client.pull_as(&pushed.tag, Some(wrong)).await.unwrap_err();
    assert!(
        !error.message().contains("not it"),
        "the password is told: {error}"
    );

    // The pod that an image is pulled for changes nothing: images are for all of them.
    let request = cri::PullImageRequest {
        image: Some(spec(&pushed.tag)),
        auth: by_password(),
        sandbox_config: Some(client.pod_config("nobody")),
    };
    let answer = client.images.clone().pull_image(request).await?.into_inner();
    assert_eq!(answer.image_ref, pushed.id);
    assert!(client.pods(None).await?.is_empty());
    client.remove_image(&pushed.id).await?;
    let encoded = cri::AuthConfig {
        auth: STANDARD.encode(format!("{USER}:{PASSWORD}")),
        ..Default::default()
    };
    assert_eq!(client.pull_as(&pushed.digest, Some(encoded)).await?, pushed.id);
    client.remove_image(&pushed.id).await?;
    // Credentials are shown to the server that they are for, and to no other.
    let for_server = |server: &str| {
        by_password().map(|auth| cri::AuthConfig {
            server_address: server.into(),
            ..auth
        })
    };
    if !node.is_peer() {
        let error = client.pull_as(&pushed.tag, for_server("registry.example")).await;
        assert_eq!(error.unwrap_err().code(), Code::Unauthenticated);
    }
    let own = format!("http://{}/v2/", registry.host());
    assert_eq!(client.pull_as(&pushed.tag, for_server(&own)).await?, pushed.id);
    client.remove_image(&pushed.id).await?;
    node.finish().await
}

#[tokio::test]
async fn bearer() -> Result {
    let registry = Registry::start().await?;
    let pushed = Image::busybox().push(&registry, "private/app:1").await?;
    let node = Node::start().await?;
    let client = node.client().await?;

    let open = Proxy::start(&registry, Fault::AnonymousToken).await?;
    assert_eq!(client.pull(&open.instead(&pushed.tag)).await?, pushed.id);
    client.remove_image(&pushed.id).await?;

    let closed = Proxy::start(&registry, Fault::Token).await?;
    let name = closed.instead(&pushed.tag);
    assert!(client.pull(&name).await.is_err());
    assert_eq!(client.pull_as(&name, by_password()).await?, pushed.id);
    client.remove_image(&pushed.id).await?;

    let token = cri::AuthConfig {
        registry_token: "e2e-token".into(),
        ..Default::default()
    };
    if !node.is_peer() {
        assert_eq!(client.pull_as(&name, Some(token)).await?, pushed.id);
        client.remove_image(&pushed.id).await?;
    }

    let identity = |token: &str| {
        Some(cri::AuthConfig {
            identity_token: token.into(),
            ..Default::default()
        })
    };
    let error = client.pull_as(&name, identity("stolen")).await.unwrap_err();
    assert!(!error.message().contains("stolen"), "the token is told: {error}");
    assert_eq!(client.pull_as(&name, identity(IDENTITY)).await?, pushed.id);
    client.remove_image(&pushed.id).await?;
    node.finish().await
}
