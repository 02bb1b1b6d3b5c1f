//! `pull`, `images` and `rmi`.

use super::{Client, Error, arguments, error::call, parse::Credentials, table};
use crate::proto::cri;

pub async fn pull(mut client: Client, args: &arguments::Pull) -> Result<u8, Error> {
    let id = fetch(
        &mut client,
        &args.reference,
        Credentials::or_environment(args.creds.as_ref()),
    )
    .await?;
    table::print(&format!("{id}\n"))?;
    Ok(0)
}

/// Pulls and returns the image's id.
pub async fn fetch(
    client: &mut Client,
    reference: &str,
    auth: Option<cri::AuthConfig>,
) -> Result<String, Error> {
    let request = cri::PullImageRequest {
        image: Some(spec(reference)),
        auth,
        sandbox_config: None,
    };
    let answer = client.images.pull_image(request).await;
    Ok(answer
        .map_err(call("pull image", reference))?
        .into_inner()
        .image_ref)
}

/// The id of an image that the node has.
pub async fn present(client: &mut Client, reference: &str) -> Result<Option<String>, Error> {
    let request = cri::ImageStatusRequest {
        image: Some(spec(reference)),
        verbose: false,
    };
    let answer = client.images.image_status(request).await;
    let image = answer
        .map_err(call("look for image", reference))?
        .into_inner()
        .image;
    Ok(image.map(|image| image.id))
}

pub async fn list(mut client: Client, args: &arguments::Images) -> Result<u8, Error> {
    let mut images = client
        .images
        .list_images(cri::ListImagesRequest { filter: None })
        .await
        .map_err(call("list", "images"))?
        .into_inner()
        .images;
    images.sort_by(|a, b| (&a.repo_tags, &a.id).cmp(&(&b.repo_tags, &b.id)));
    if args.quiet {
        let ids: String = images.iter().map(|image| format!("{}\n", image.id)).collect();
        table::print(&ids)?;
        return Ok(0);
    }
    let rows: Vec<_> = images.iter().flat_map(rows_of).collect();
    table::print(&table::format(&["REPOSITORY", "TAG", "IMAGE ID", "SIZE"], &rows))?;
    Ok(0)
}

/// One row for each tag; an image that has none is shown by its digests.
fn rows_of(image: &cri::Image) -> Vec<Vec<String>> {
    let row = |repository: &str, tag: &str| {
        vec![
            repository.to_owned(),
            tag.to_owned(),
            table::short(&image.id).to_owned(),
            table::size(image.size),
        ]
    };
    if !image.repo_tags.is_empty() {
        let split = |name: &str| {
            let (repository, tag) = name.rsplit_once(':').unwrap_or((name, ""));
            row(repository, tag)
        };
        return image.repo_tags.iter().map(|name| split(name)).collect();
    }
    let repositories = image.repo_digests.iter();
    let rows: Vec<_> = repositories
        .map(|name| row(name.split('@').next().unwrap_or(name), "<none>"))
        .collect();
    if rows.is_empty() {
        vec![row("<none>", "<none>")]
    } else {
        rows
    }
}

pub async fn remove(mut client: Client, args: &arguments::Rmi) -> Result<u8, Error> {
    for name in &args.images {
        // RemoveImage says OK to what is not there; people want to know of a slip.
        let Some(id) = present(&mut client, name).await? else {
            return Err(Error::NoImage(name.clone()));
        };
        // An id drops all tags, a tag only itself.
        let request = cri::RemoveImageRequest {
            image: Some(spec(name)),
        };
        client
            .images
            .remove_image(request)
            .await
            .map_err(call("remove image", name))?;
        table::print(&format!("{id}\n"))?;
    }
    Ok(0)
}

pub fn spec(reference: &str) -> cri::ImageSpec {
    cri::ImageSpec {
        image: reference.into(),
        ..Default::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_image_has_a_row_for_each_name() {
        let mut image = cri::Image {
            id: format!("sha256:{}", "ab".repeat(32)),
            repo_tags: vec!["host:5000/a:1".into(), "b:2".into()],
            repo_digests: vec!["host:5000/a@sha256:00".into()],
            size: 1_500,
            ..Default::default()
        };
        let rows = rows_of(&image);
        assert_eq!(rows[0], ["host:5000/a", "1", "abababababab", "1.5kB"]);
        assert_eq!(rows[1][..2], ["b", "2"]);
        image.repo_tags.clear();
        assert_eq!(rows_of(&image)[0][..2], ["host:5000/a", "<none>"]);
        image.repo_digests.clear();
        assert_eq!(rows_of(&image).len(), 1);
    }
}
