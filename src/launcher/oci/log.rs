//! What a runtime said last: the message of the last line of its log, or of its
//! standard error when it wrote none.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::Path;

/// The end of a log, in which the last line is.
const TAIL: u64 = 8 << 10;
/// Most of a message that is told.
const TOLD: usize = 1024;

/// The last error of the file, if there is one.
pub fn last_error(path: &Path) -> Option<String> {
    let mut file = File::open(path).ok()?;
    let length = file.metadata().ok()?.len();
    file.seek(SeekFrom::Start(length.saturating_sub(TAIL))).ok()?;
    let mut text = Vec::new();
    file.take(TAIL).read_to_end(&mut text).ok()?;
    message(&String::from_utf8_lossy(&text))
}

/// Of the last line that is an error, else of the last one.
pub fn message(text: &str) -> Option<String> {
    let lines = || text.lines().rev().filter(|line| !line.trim().is_empty());
    let error = lines().find(|line| field(line, "level").as_deref() == Some("error"));
    let line = error.or_else(|| lines().next())?;
    let mut told = field(line, "msg").unwrap_or_else(|| line.trim().to_owned());
    // crun's words from inside of the container are themselves such a line.
    while let Some(inner) = field(&told, "msg").filter(|_| told.starts_with('{')) {
        told = inner;
    }
    if let Some((at, _)) = told.char_indices().nth(TOLD) {
        told.truncate(at);
        told.push('…');
    }
    Some(told)
}

/// A text of a JSON object in one line; the shim has no parser for more.
fn field(line: &str, name: &str) -> Option<String> {
    let start = line.find(&format!("\"{name}\""))? + name.len() + 2;
    let rest = line.get(start..)?.trim_start().strip_prefix(':')?.trim_start();
    let mut letters = rest.strip_prefix('"')?.chars();
    let mut text = String::new();
    while let Some(letter) = letters.next() {
        match letter {
            '"' => return Some(text),
            '\\' => match letters.next()? {
                'n' | 'r' | 't' => text.push(' '),
                'u' => {
                    let digits: String = letters.by_ref().take(4).collect();
                    let code = u32::from_str_radix(&digits, 16).ok()?;
                    text.push(char::from_u32(code).unwrap_or(char::REPLACEMENT_CHARACTER));
                }
                other => text.push(other),
            },
            other => text.push(other),
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_error_is_told() {
        let log = concat!(
            "{\"level\":\"warning\",\"msg\":\"old kernel\",\"time\":\"t\"}\n",
            "{\"level\":\"error\",\"msg\":\"exec: \\\"nope\\\": not found\\u0021\",\"time\":\"t\"}\n",
            "{\"level\":\"info\",\"msg\":\"bye\"}\n",
        );
        assert_eq!(message(log).unwrap(), "exec: \"nope\": not found!");
        let other_order = "{ \"msg\": \"open `/x`: gone\", \"level\": \"error\" }";
        assert_eq!(message(other_order).unwrap(), "open `/x`: gone");
        let nested =
            "{\"msg\":\"{\\\"msg\\\":\\\"within\\\",\\\"level\\\":\\\"error\\\"}\",\"level\":\"error\"}";
        assert_eq!(message(nested).unwrap(), "within");
        assert_eq!(message("some words\nplain text\n\n").unwrap(), "plain text");
        assert_eq!(message("\n"), None);
        assert_eq!(
            message("{\"level\":\"error\",\"msg\":\"cut").unwrap(),
            "{\"level\":\"error\",\"msg\":\"cut"
        );
    }
}
