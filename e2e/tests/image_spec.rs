//! What a request says of an image besides its name.

use e2e::{Result, Story, cri};
use tonic::Code;

#[tokio::test]
async fn handlers_are_checked_and_the_rest_is_given_back() -> Result {
    let story = Story::begin_with("[runtimes.small]\ntype = \"berth\"\n").await?;
    if story.node.is_peer() {
        eprintln!("skipped: it needs a runtime handler of its own");
        return story.finish().await;
    }
    let client = &story.client;
    let spec = cri::ImageSpec {
        image: story.image.tag.clone(),
        annotations: [("e2e/plain".to_owned(), "a\nb".to_owned())].into(),
        runtime_handler: "small".into(),
        ..Default::default()
    };
    let pull = async |spec: &cri::ImageSpec| {
        let request = cri::PullImageRequest {
            image: Some(spec.clone()),
            ..Default::default()
        };
        client.images.clone().pull_image(request).await
    };
    // Images are the same ones for all handlers.
    assert_eq!(pull(&spec).await?.into_inner().image_ref, story.image.id);
    let mut wrong = spec.clone();
    wrong.runtime_handler = "no-such-handler".into();
    let error = pull(&wrong).await.unwrap_err();
    assert_eq!(error.code(), Code::NotFound, "{error}");
    assert!(error.message().contains("no-such-handler"), "{error}");

    let config = client.pod_config("image");
    let request = cri::RunPodSandboxRequest {
        config: Some(config.clone()),
        runtime_handler: "small".into(),
    };
    std::fs::create_dir_all(&config.log_directory)?;
    let id = Box::pin(client.runtime.clone().run_pod_sandbox(request))
        .await?
        .into_inner()
        .pod_sandbox_id;
    let pod = e2e::Pod { id, config };
    let mut container = story.script("c", "exec sleep 1000");
    let asked = cri::ImageSpec {
        image: story.image.id.clone(),
        user_specified_image: "what/people:wrote".into(),
        ..spec
    };
    container.image = Some(asked.clone());
    let id = client.run(&pod, container).await?;
    let listed = client.containers(None).await?;
    assert_eq!(listed[0].image, Some(asked.clone()));
    let told = client.status(&id).await?.image;
    let expected = cri::ImageSpec {
        image: asked.user_specified_image.clone(),
        ..asked
    };
    assert_eq!(told, Some(expected));
    story.finish().await
}
