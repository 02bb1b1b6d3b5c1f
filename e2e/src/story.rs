//! The frame of a story: registry, node, client and a small image.

use crate::{Client, Image, Node, Pod, Registry, Result, cri, images::Pushed};

/// Everything that most stories need.
#[derive(Debug)]
pub struct Story {
    pub registry: Registry,
    pub node: Node,
    pub client: Client,
    /// busybox, pushed and pulled.
    pub image: Pushed,
    /// What was pushed by way of this story, to be removed at its end.
    known: Vec<String>,
}

impl Story {
    pub async fn begin() -> Result<Story> {
        Story::begin_with("").await
    }

    /// With more configuration for berthd, in TOML.
    pub async fn begin_with(config: &str) -> Result<Story> {
        Story::begin_on(Node::start_with(config).await?).await
    }

    /// On a node that runs already.
    pub async fn begin_on(node: Node) -> Result<Story> {
        let registry = Registry::start().await?;
        let image = Image::busybox().push(&registry, "busybox:1").await?;
        let client = node.client().await?;
        client.pull(&image.tag).await?;
        Ok(Story {
            registry,
            node,
            client,
            known: vec![image.tag.clone()],
            image,
        })
    }

    /// Pushes an image and pulls it.
    pub async fn image(&mut self, image: Image, name: &str) -> Result<Pushed> {
        let pushed = image.push(&self.registry, name).await?;
        self.client.pull(&pushed.tag).await?;
        self.known.push(pushed.tag.clone());
        Ok(pushed)
    }

    /// A request for a container of the story's image that runs a script.
    pub fn script(&self, name: &str, script: &str) -> cri::ContainerConfig {
        self.client.script(name, &self.image.tag, script)
    }

    /// A pod with one container that sleeps: pod and container id.
    pub async fn sleeper(&self, name: &str) -> Result<(Pod, String)> {
        let pod = self.client.run_pod(name).await?;
        let id = self
            .client
            .run(&pod, self.script(name, "exec sleep 1000"))
            .await?;
        Ok((pod, id))
    }

    /// Removes every pod and image, stops berthd and asserts that nothing is left.
    pub async fn finish(self) -> Result<()> {
        self.client.remove_everything().await?;
        if self.node.is_peer() {
            for tag in &self.known {
                self.client.remove_image(tag).await?;
            }
        } else {
            for image in self.client.image_list().await? {
                self.client.remove_image(&image.id).await?;
            }
        }
        self.node.finish().await
    }
}
