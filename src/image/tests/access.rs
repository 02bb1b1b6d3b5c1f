//! Credentials: who gets to see them, and who must not.

use std::sync::atomic::{AtomicUsize, Ordering};

use super::*;
use crate::kind::{HasKind as _, Kind};
use serde_json::json;

const BASIC: &str = "Basic dXNlcjpzZWNyZXQ="; // user:secret

fn password() -> AuthConfig {
    AuthConfig {
        username: "user".into(),
        password: "secret".into(),
        ..AuthConfig::default()
    }
}

async fn with_image() -> (Registry, String) {
    let registry = Registry::start().await;
    let (id, _) = registry.push("a/b", "v1", &[file("x", b"1"), file("y", b"2")], json!({}));
    (registry, id)
}

fn demand(challenge: &str) -> Reply {
    Reply::new(
        401,
        r#"{"errors":[{"code":"UNAUTHORIZED","message":"authentication required"}]}"#,
    )
    .with("www-authenticate", challenge)
}

#[tokio::test]
async fn basic() {
    let (registry, id) = with_image().await;
    registry.on(|r| (r.header("authorization") != BASIC).then(|| demand("Basic realm=\"r\"")));
    let name = registry.name("a/b:v1");
    for wrong in [
        AuthConfig::default(),
        AuthConfig {
            password: "wrong-one".into(),
            ..password()
        },
        AuthConfig {
            server_address: "other.example".into(),
            ..password()
        },
        AuthConfig {
            identity_token: "hidden".into(),
            ..AuthConfig::default()
        },
    ] {
        let node = Node::new();
        let error = node.pull_as(&name, wrong).await.unwrap_err();
        assert_eq!(error.kind(), Kind::Unauthenticated, "{error}");
        let text = format!("{error} {error:?}");
        assert!(
            !text.contains("wrong-one") && !text.contains("hidden") && !text.contains("secret"),
            "{text}"
        );
        node.assert_empty();
    }
    let encoded = AuthConfig {
        auth: BASIC[6..].into(),
        server_address: registry.url(),
        ..AuthConfig::default()
    };
    for right in [password(), encoded] {
        assert_eq!(Node::new().pull_as(&name, right).await.unwrap(), id);
    }
}

/// A registry whose tokens come from its own `/token`, each good for three requests.
fn tokens(registry: &Registry, service: impl Fn(&super::registry::Request) -> bool + Send + Sync + 'static) {
    let (issued, used) = (AtomicUsize::new(0), AtomicUsize::new(0));
    let realm = format!("{}/token?a=b", registry.url());
    registry.on(move |request| {
        if request.path.starts_with("/token") {
            if !service(request) {
                return Some(Reply::new(401, "no"));
            }
            used.store(0, Ordering::Relaxed);
            let number = issued.fetch_add(1, Ordering::Relaxed) + 1;
            return Some(Reply::new(
                200,
                format!(r#"{{"token":"t{number}","expires_in":300}}"#),
            ));
        }
        let valid = format!("Bearer t{}", issued.load(Ordering::Relaxed));
        if request.header("authorization") == valid && used.fetch_add(1, Ordering::Relaxed) < 3 {
            return None;
        }
        Some(demand(&format!(
            "Bearer realm=\"{realm}\",service=\"the, service\",scope=\"repository:a/b:pull\""
        )))
    });
}

#[tokio::test]
async fn tokens_are_fetched_and_renewed_when_they_expire_in_the_middle() {
    let (registry, id) = with_image().await;
    tokens(&registry, |request| {
        assert!(
            request.path.contains("service=the%2C%20service"),
            "{}",
            request.path
        );
        assert!(request.path.contains("scope=repository%3Aa%2Fb%3Apull") && request.path.contains("a=b"));
        request.header("authorization") == BASIC
    });
    let node = Node::new();
    assert_eq!(
        node.pull_as(&registry.name("a/b:v1"), password()).await.unwrap(),
        id
    );
    assert_eq!(registry.count("/token"), 2);
    let error = Node::new().pull(&registry.name("a/b:v1")).await.unwrap_err();
    assert_eq!(error.kind(), Kind::Unauthenticated);
    assert!(error.to_string().contains("token service"), "{error}");
}

#[tokio::test]
async fn anonymous_tokens_identity_tokens_and_registry_tokens() {
    let (registry, id) = with_image().await;
    tokens(&registry, |request| request.header("authorization").is_empty());
    let name = registry.name("a/b:v1");
    assert_eq!(Node::new().pull(&name).await.unwrap(), id);

    registry.forget_rules();
    tokens(&registry, |request| {
        request.method == "POST"
            && request.body.contains("grant_type=refresh_token")
            && request.body.contains("refresh_token=i%2Bd")
    });
    let identity = AuthConfig {
        identity_token: "i+d".into(),
        ..AuthConfig::default()
    };
    assert_eq!(Node::new().pull_as(&name, identity).await.unwrap(), id);

    registry.forget_rules();
    registry
        .on(|r| (r.header("authorization") != "Bearer given").then(|| demand("Bearer realm=\"http://x/\"")));
    let token = AuthConfig {
        registry_token: "given".into(),
        ..AuthConfig::default()
    };
    assert_eq!(Node::new().pull_as(&name, token).await.unwrap(), id);
}

#[tokio::test]
async fn redirects_lose_the_authorization_when_the_host_changes() {
    let (registry, id) = with_image().await;
    let storage = Registry::start().await;
    let (layer, away) = (file("x", b"1"), storage.url());
    storage.put("/bucket/x", "", &layer.blob);
    let path = format!("/v2/a/b/blobs/{}", layer.digest());
    registry.on(|r| (r.header("authorization") != BASIC).then(|| demand("Basic realm=\"r\"")));
    registry.on(move |r| {
        let move_it = r.path == path && r.header("authorization") == BASIC;
        move_it.then(|| Reply::new(307, "").with("location", format!("{away}/bucket/x?sig=signed")))
    });
    let node = Node::new();
    assert_eq!(
        node.pull_as(&registry.name("a/b:v1"), password()).await.unwrap(),
        id
    );
    let seen = storage.log();
    assert_eq!(seen.len(), 1);
    assert_eq!(seen[0].header("authorization"), "");

    // What a storage says about it has no signature in it.
    storage.on(|_| Some(Reply::new(403, "")));
    let node = Node::new();
    let error = node
        .pull_as(&registry.name("a/b:v1"), password())
        .await
        .unwrap_err();
    assert_eq!(error.kind(), Kind::PermissionDenied);
    assert!(!error.to_string().contains("signed"), "{error}");
    node.assert_empty();
}

#[tokio::test]
async fn endless_redirects_end() {
    let (registry, _) = with_image().await;
    registry.on(|r| Some(Reply::new(302, "").with("location", r.path.clone())));
    let error = Node::new().pull(&registry.name("a/b:v1")).await.unwrap_err();
    assert!(error.to_string().contains("redirects"), "{error}");
    assert!(registry.log().len() < 10);
}

#[tokio::test]
async fn an_answer_that_repeats_a_secret_is_not_shown() {
    let (registry, _) = with_image().await;
    registry.on(|r| (r.header("authorization") == BASIC).then(|| Reply::new(403, "you said user:secret")));
    registry.on(|r| r.header("authorization").is_empty().then(|| demand("Basic")));
    let error = Node::new()
        .pull_as(&registry.name("a/b:v1"), password())
        .await
        .unwrap_err();
    assert!(!format!("{error} {error:?}").contains("secret"), "{error}");
}
