//! The images: what pods run, what holds the peers' sandboxes, and a large one whose
//! content is the same in every run and compresses like that of real ones.

use std::{path::Path, process::Command, sync::Arc};

use anyhow::{Context, ensure};
use e2e::{Image, Registry, Result, images::Packing, tar::Entry};
use serde_json::json;

/// The names of the images in the registry of the run.
#[derive(Clone, Debug)]
pub struct Images {
    pub pause: String,
    pub workload: String,
    registry: Arc<Registry>,
}

/// A file of the workload's image with lines of 100 bytes, and how many.
pub const LINES_FILE: &str = "/lines";
pub const LINES_OF_FILE: u64 = (16 << 20) / 100;

const LAYERS: usize = 5;
/// Bytes of files, in all layers.
const LARGE: usize = 606 << 20;

const PAUSE: &str = include_str!("pause.c");

impl Images {
    /// Pushes the small ones; `folder` is for the compiler.
    pub async fn push(registry: Registry, folder: &Path) -> Result<Images> {
        let pause = Image::empty()
            .layer(&[Entry::file("pause", compile(folder)?).mode(0o755)])
            .config(json!({"Entrypoint": ["/pause"]}))
            .push(&registry, "pause:1")
            .await?;
        let line = format!("{:0>99}\n", 7);
        let lines = line.repeat(usize::try_from(LINES_OF_FILE)?);
        let workload = Image::busybox()
            .layer(&[Entry::file(LINES_FILE.trim_start_matches('/'), lines)])
            .push(&registry, "workload:1")
            .await?;
        Ok(Images {
            pause: pause.tag,
            workload: workload.tag,
            registry: Arc::new(registry),
        })
    }

    /// `HOST:PORT` of the registry.
    pub fn host(&self) -> String {
        self.registry.host()
    }

    /// Pushes the large one with layers in gzip, and in zstd.
    pub async fn large(&self) -> Result<(String, String)> {
        let mut image = Image::busybox();
        for number in 0..LAYERS {
            image = image.layer(&layer(number));
        }
        let gzip = image.push(&self.registry, "large:gzip").await?;
        let zstd = image
            .packing(Packing::Zstd)
            .push(&self.registry, "large:zstd")
            .await?;
        Ok((gzip.tag, zstd.tag))
    }
}

/// A static program, as the pause images of the peers have.
fn compile(folder: &Path) -> Result<Vec<u8>> {
    let source = folder.join("pause.c");
    let program = folder.join("pause");
    std::fs::write(&source, PAUSE)?;
    let status = Command::new("cc")
        .args(["-Os", "-static", "-s", "-o"])
        .args([&program, &source])
        .status()
        .context("run cc (package gcc)")?;
    ensure!(status.success(), "cc failed at pause.c: {status}");
    Ok(std::fs::read(program)?)
}

/// Files of many sizes, most of them small, in folders.
fn layer(number: usize) -> Vec<Entry> {
    let mut numbers = Numbers(0x9e37_79b9_7f4a_7c15 ^ (number as u64 + 1));
    let words = vocabulary();
    let mut entries = vec![Entry::folder("srv"), Entry::folder(&format!("srv/{number}"))];
    let mut left = LARGE / LAYERS;
    let mut count = 0;
    while left > 0 {
        if count % 100 == 0 {
            entries.push(Entry::folder(&format!("srv/{number}/{}", count / 100)));
        }
        let power = numbers.below(12).min(numbers.below(12));
        let size = ((1024 << power) + numbers.below(1 << power) * 1000).min(left);
        let content = if count % 2 == 0 {
            text(&mut numbers, &words, size)
        } else {
            code(&mut numbers, size)
        };
        let path = format!("srv/{number}/{}/{count}", count / 100);
        entries.push(Entry::file(&path, content).mode(0o755));
        left -= size;
        count += 1;
    }
    entries
}

/// Words, of which a few are very frequent.
fn text(numbers: &mut Numbers, words: &[String], size: usize) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(size + 128);
    while bytes.len() < size {
        bytes.extend(words[numbers.skewed(words.len())].as_bytes());
        bytes.push(if numbers.below(12) == 0 { b'\n' } else { b' ' });
        again(numbers, &mut bytes);
    }
    bytes.truncate(size);
    bytes
}

/// Something like instructions: frequent first bytes, operands that repeat, and some
/// that do not.
fn code(numbers: &mut Numbers, size: usize) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(size + 128);
    while bytes.len() < size {
        let kind = numbers.skewed(40);
        bytes.extend([0x48, byte(kind * 5), byte(numbers.below(8) * 8)]);
        match kind % 4 {
            0 => bytes.extend(numbers.next().to_le_bytes().iter().take(3)),
            1 => bytes.extend([byte(numbers.below(16)), 0, 0, 0]),
            2 => bytes.extend([0xff, 0xff]),
            _ => {}
        }
        again(numbers, &mut bytes);
    }
    bytes.truncate(size);
    bytes
}

/// Now and then, something from a little before once more, as names, phrases and
/// prologues of functions come again.
fn again(numbers: &mut Numbers, bytes: &mut Vec<u8>) {
    let length = 8 + numbers.skewed(64);
    if bytes.len() > length && numbers.below(3) == 0 {
        let back = length + numbers.skewed((bytes.len() - length).min(24_000) + 1);
        let from = bytes.len() - back;
        bytes.extend_from_within(from..from + length);
    }
}

fn byte(value: usize) -> u8 {
    u8::try_from(value & 0xff).unwrap_or_default()
}

fn vocabulary() -> Vec<String> {
    let mut numbers = Numbers(42);
    let letters = b"etaoinshrdlucmfwypvbgkqjxz_.";
    let word = |numbers: &mut Numbers| -> String {
        let length = 2 + numbers.below(9);
        let letter = |numbers: &mut Numbers| char::from(letters[numbers.skewed(letters.len())]);
        (0..length).map(|_| letter(numbers)).collect()
    };
    (0..8000).map(|_| word(&mut numbers)).collect()
}

/// Numbers that look random and are the same every time (xorshift).
struct Numbers(u64);

impl Numbers {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    fn below(&mut self, limit: usize) -> usize {
        usize::try_from(self.next() >> 33).unwrap_or_default() % limit
    }

    /// Below the limit, and the smaller the more often.
    fn skewed(&mut self, limit: usize) -> usize {
        let upper = self.below(limit) + 1;
        self.below(upper)
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    /// Zeros would make every server look fast, noise would make none inflate.
    #[test]
    fn the_content_is_the_same_and_compresses_like_real_images() {
        let mut numbers = Numbers(7);
        let words = vocabulary();
        let mut bytes = text(&mut numbers, &words, 1 << 20);
        bytes.extend(code(&mut numbers, 1 << 20));
        let mut again = Numbers(7);
        assert_eq!(bytes[..1 << 20], text(&mut again, &words, 1 << 20));
        let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        gzip.write_all(&bytes).unwrap();
        let ratio = bytes.len() as f64 / gzip.finish().unwrap().len() as f64;
        assert!((2.0..3.5).contains(&ratio), "{ratio}");
    }
}
