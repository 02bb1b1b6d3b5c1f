//! `debug`: one file for a bug report. Whatever cannot be had is named in it instead:
//! it is made when something is broken.

use std::{
    fs::OpenOptions,
    future::Future,
    io::{self, Write},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use flate2::{Compression, write::GzEncoder};

use super::{Client, Error, arguments, debug_facts};
use crate::proto::cri;

/// How long berthd, or a program, has for one answer.
pub(super) const PATIENCE: Duration = Duration::from_secs(10);

const ABOUT: &str = "\
What `berth debug` found on a node, for a bug report about Berth. Read it before you
hand it on: names of pods, images, nodes and labels are in it. Variables,
annotations and the output of containers, secrets of registries and the contents of
images are not.

What ends in .missing could not be had, and says why.
";

/// The archive under way.
pub(super) struct Bundle<W: Write> {
    archive: tar::Builder<GzEncoder<W>>,
    now: u64,
    pub missing: u32,
}

impl<W: Write> Bundle<W> {
    fn new(out: W) -> Bundle<W> {
        let since = SystemTime::now().duration_since(UNIX_EPOCH);
        Bundle {
            archive: tar::Builder::new(GzEncoder::new(out, Compression::default())),
            now: since.unwrap_or_default().as_secs(),
            missing: 0,
        }
    }

    /// Adds a file, or the reason why there is none.
    pub fn add(&mut self, name: &str, found: Result<Vec<u8>, String>) -> io::Result<()> {
        let (name, contents) = match found {
            Ok(contents) => (format!("berth-debug/{name}"), contents),
            Err(reason) => {
                self.missing += 1;
                (
                    format!("berth-debug/{name}.missing"),
                    format!("{reason}\n").into_bytes(),
                )
            }
        };
        let mut header = tar::Header::new_gnu();
        header.set_mode(0o600);
        header.set_mtime(self.now);
        header.set_size(contents.len() as u64);
        self.archive.append_data(&mut header, name, &*contents)
    }

    fn finish(self) -> io::Result<W> {
        self.archive.into_inner()?.finish()
    }
}

/// Makes the file, and prints its name.
pub async fn debug(address: &str, args: &arguments::Debug) -> Result<u8, Error> {
    let path = args.output.clone().unwrap_or_else(default_name);
    let failed = |step: &'static str| {
        let path = path.clone();
        move |source| Error::File { step, path, source }
    };
    let file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&path)
        .map_err(failed("make"))?;
    let mut bundle = Bundle::new(file);
    collect(&mut bundle, address, args)
        .await
        .map_err(failed("write"))?;
    let missing = bundle.missing;
    let file = bundle.finish().map_err(failed("write"))?;
    file.sync_all().map_err(failed("write"))?;
    println!("{}", path.display());
    if missing > 0 {
        eprintln!("{missing} things could not be had; the archive says why (*.missing)");
    }
    eprintln!("read it before you hand it on: names of pods, images and labels are in it");
    Ok(0)
}

fn default_name() -> PathBuf {
    let node = rustix::system::uname();
    let node = node.nodename().to_string_lossy().replace('/', "_");
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    format!("berth-debug-{node}-{}.tar.gz", since.as_secs()).into()
}

async fn collect<W: Write>(bundle: &mut Bundle<W>, address: &str, args: &arguments::Debug) -> io::Result<()> {
    bundle.add("about.txt", Ok(ABOUT.into()))?;
    bundle.add(
        "version.txt",
        Ok(format!("{}\n", env!("CARGO_PKG_VERSION")).into()),
    )?;
    // What it waits for, before it is asked anything.
    debug_facts::processes(bundle, &args.state)?;
    match soon(Client::connect(address)).await {
        Ok(client) => answers(bundle, client).await?,
        Err(reason) => bundle.add("answers", Err(reason))?,
    }
    debug_facts::programs(bundle, args).await?;
    debug_facts::node(bundle)
}

/// What berthd says. Texts for people: messages of the interface as they are.
async fn answers<W: Write>(bundle: &mut Bundle<W>, client: Client) -> io::Result<()> {
    let Client {
        mut runtime,
        mut images,
    } = client;
    let version = soon(runtime.version(cri::VersionRequest::default())).await;
    match version {
        Ok(answer) => bundle.add("answers/version.txt", Ok(shown(answer.get_ref())))?,
        // One that does not answer this answers nothing.
        Err(reason) => return bundle.add("answers", Err(reason)),
    }
    let status = soon(runtime.status(cri::StatusRequest { verbose: true })).await;
    bundle.add("answers/status.txt", status.map(|answer| shown(answer.get_ref())))?;
    let config = soon(runtime.runtime_config(cri::RuntimeConfigRequest {})).await;
    bundle.add(
        "answers/runtime-config.txt",
        config.map(|answer| shown(answer.get_ref())),
    )?;
    let usage = soon(images.image_fs_info(cri::ImageFsInfoRequest {})).await;
    bundle.add(
        "answers/image-fs.txt",
        usage.map(|answer| shown(answer.get_ref())),
    )?;
    let all = soon(images.list_images(cri::ListImagesRequest::default())).await;
    let all = all.map(|answer| {
        let mut images = answer.into_inner().images;
        for image in &mut images {
            without_secrets(image.spec.as_mut().map(|spec| &mut spec.annotations));
        }
        shown(&images)
    });
    bundle.add("answers/images.txt", all)?;
    let stats = soon(runtime.list_container_stats(cri::ListContainerStatsRequest::default())).await;
    let stats = stats.map(|answer| {
        let mut stats = answer.into_inner().stats;
        for one in &mut stats {
            without_secrets(one.attributes.as_mut().map(|of| &mut of.annotations));
        }
        shown(&stats)
    });
    bundle.add("answers/container-stats.txt", stats)?;

    let pods = soon(runtime.list_pod_sandbox(cri::ListPodSandboxRequest::default())).await;
    let pods = match pods {
        Ok(answer) => answer.into_inner().items,
        Err(reason) => return bundle.add("answers/pods", Err(reason)),
    };
    for pod in pods {
        let request = cri::PodSandboxStatusRequest {
            pod_sandbox_id: pod.id.clone(),
            verbose: true,
        };
        let status = soon(runtime.pod_sandbox_status(request)).await.map(|answer| {
            let mut answer = answer.into_inner();
            without_secrets(answer.status.as_mut().map(|status| &mut status.annotations));
            shown(&(answer.status, answer.info.get("timeline")))
        });
        bundle.add(&format!("answers/pods/{}.txt", pod.id), status)?;
    }
    let containers = soon(runtime.list_containers(cri::ListContainersRequest::default())).await;
    let containers = match containers {
        Ok(answer) => answer.into_inner().containers,
        Err(reason) => return bundle.add("answers/containers", Err(reason)),
    };
    for container in containers {
        let request = cri::ContainerStatusRequest {
            container_id: container.id.clone(),
            verbose: true,
        };
        // The rest of what is verbose has the container's variables.
        let status = soon(runtime.container_status(request)).await.map(|answer| {
            let mut answer = answer.into_inner();
            without_secrets(answer.status.as_mut().map(|status| &mut status.annotations));
            shown(&(
                &container.pod_sandbox_id,
                answer.status,
                answer.info.get("timeline"),
            ))
        });
        bundle.add(&format!("answers/containers/{}.txt", container.id), status)?;
    }
    Ok(())
}

/// People put all kinds of things into annotations: their names are kept.
fn without_secrets(annotations: Option<&mut std::collections::HashMap<String, String>>) {
    for value in annotations.into_iter().flat_map(|all| all.values_mut()) {
        *value = format!("({} bytes)", value.len());
    }
}

fn shown(message: &impl std::fmt::Debug) -> Vec<u8> {
    format!("{message:#?}\n").into_bytes()
}

/// The answer, or why there is none, in time.
async fn soon<T, E: std::fmt::Display>(call: impl Future<Output = Result<T, E>>) -> Result<T, String> {
    match tokio::time::timeout(PATIENCE, call).await {
        Ok(answer) => answer.map_err(|error| error.to_string()),
        Err(_) => Err(format!("no answer in {} s", PATIENCE.as_secs())),
    }
}

/// Contents of a small file.
pub(super) fn contents(path: &Path) -> Result<Vec<u8>, String> {
    std::fs::read(path).map_err(|error| format!("read {}: {error}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_missing_is_named() {
        let mut bundle = Bundle::new(Vec::new());
        bundle.add("a.txt", Ok(b"here".to_vec())).unwrap();
        bundle.add("b.txt", Err("gone".into())).unwrap();
        assert_eq!(bundle.missing, 1);
        let bytes = bundle.finish().unwrap();
        let mut archive = tar::Archive::new(flate2::read::GzDecoder::new(&*bytes));
        let found: Vec<_> = archive
            .entries()
            .unwrap()
            .map(|entry| {
                let mut entry = entry.unwrap();
                let mut text = String::new();
                io::Read::read_to_string(&mut entry, &mut text).unwrap();
                (entry.path().unwrap().display().to_string(), text)
            })
            .collect();
        let expected = [
            ("berth-debug/a.txt", "here"),
            ("berth-debug/b.txt.missing", "gone\n"),
        ];
        assert_eq!(
            found,
            expected.map(|(name, text)| (name.to_owned(), text.to_owned()))
        );
    }
}
