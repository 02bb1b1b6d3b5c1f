//! Man pages from what the programs are made of: the definitions of their arguments,
//! and the comments of the shipped configuration.

use std::fmt::Write as _;

use clap::{Arg, Command};
use clap_mangen::Man;

use crate::Result;

/// The page of the shim, which has no arguments for people.
pub const SHIM: &str = include_str!("../../deploy/man/berth-shim.8");
/// What the definitions do not say: signals, files, environment.
const BERTHD: &str = include_str!("../../deploy/man/berthd.tail");
const BERTH: &str = include_str!("../../deploy/man/berth.tail");
const CONFIG: &str = include_str!("../../deploy/man/berth-config.tail");

/// The page of a program, with all its subcommands.
pub fn command(command: Command, section: &str) -> Result<Vec<u8>> {
    let tail = if command.get_name() == "berthd" {
        BERTHD
    } else {
        BERTH
    };
    let mut command = command.disable_help_subcommand(true);
    command.build();
    let man = Man::new(command.clone()).section(section);
    let mut page = Vec::new();
    man.render_title(&mut page)?;
    man.render_name_section(&mut page)?;
    man.render_synopsis_section(&mut page)?;
    man.render_description_section(&mut page)?;
    man.render_options_section(&mut page)?;
    let mut text = String::from(".SH COMMANDS\n");
    for inner in command.get_subcommands_mut() {
        subcommand(&mut text, inner)?;
    }
    page.extend_from_slice(text.as_bytes());
    page.extend_from_slice(tail.as_bytes());
    Ok(page)
}

fn subcommand(text: &mut String, command: &mut Command) -> Result<()> {
    let usage = command.render_usage().to_string();
    let usage = usage.trim_start_matches("Usage: ");
    writeln!(
        text,
        ".SS {}\n{}",
        escaped(usage),
        sentence(command.get_about().map(ToString::to_string))
    )?;
    let global = |argument: &&Arg| argument.is_global_set() || argument.get_id() == "help";
    for argument in command.get_arguments().filter(|argument| !global(argument)) {
        writeln!(
            text,
            ".TP\n{}\n{}",
            names(argument),
            sentence(argument.get_help().map(ToString::to_string))
        )?;
    }
    for inner in command.get_subcommands_mut() {
        subcommand(text, inner)?;
    }
    Ok(())
}

/// `\fB-t\fR, \fB--time\fR \fISECONDS\fR`
fn names(argument: &Arg) -> String {
    let mut names = Vec::new();
    names.extend(argument.get_short().map(|short| format!("\\fB\\-{short}\\fR")));
    names.extend(
        argument
            .get_long()
            .map(|long| format!("\\fB\\-\\-{}\\fR", escaped(long))),
    );
    let mut text = names.join(", ");
    if argument.get_action().takes_values() {
        let values = argument.get_value_names().unwrap_or_default();
        for value in values {
            let _ = write!(text, " \\fI{}\\fR", escaped(value));
        }
    }
    text.trim_start().to_owned()
}

/// A help text as clap shows it, with the full stop that clap takes away.
fn sentence(text: Option<String>) -> String {
    let text = text.unwrap_or_default();
    let text = text.trim();
    let stop = if text.is_empty() || text.ends_with('.') {
        ""
    } else {
        "."
    };
    line(&format!("{text}{stop}"))
}

/// berth-config.toml(5), from the configuration as it is shipped: its sections, keys,
/// defaults and comments, in their order.
pub fn configuration(shipped: &str) -> Result<String> {
    let mut page = String::from(
        ".TH berth\\-config.toml 5\n.SH NAME\nberth\\-config.toml \\- configuration of Berth\n\
         .SH SYNOPSIS\n.I /etc/berth/config.toml\n.br\n.I /etc/berth/config.d/*.toml\n.SH DESCRIPTION\n",
    );
    let mut comment: Vec<&str> = Vec::new();
    let mut section = false;
    for text in shipped.lines() {
        let bare = text.trim_start_matches('#').trim();
        if let Some(name) = heading(text) {
            flush(&mut page, &mut comment)?;
            if !section {
                page.push_str(".SH SECTIONS\n");
                section = true;
            }
            writeln!(page, ".SS [{}]", escaped(name))?;
        } else if let Some(name) = heading(bare) {
            // An example, behind a sentence that says of what.
            flush(&mut page, &mut comment)?;
            writeln!(page, ".SS [{}]", escaped(name))?;
        } else if let Some((key, value)) = setting(bare) {
            writeln!(page, ".TP\n\\fB{}\\fR = {}", escaped(key), escaped(value))?;
            flush(&mut page, &mut comment)?;
        } else if text.starts_with('#') {
            comment.push(bare);
        } else {
            flush(&mut page, &mut comment)?;
        }
    }
    flush(&mut page, &mut comment)?;
    page.push_str(CONFIG);
    Ok(page)
}

/// `[network]` is "network".
fn heading(text: &str) -> Option<&str> {
    text.strip_prefix('[')?.strip_suffix(']')
}

/// `key = value`, commented out or not.
fn setting(text: &str) -> Option<(&str, &str)> {
    let (key, value) = text.split_once(" = ")?;
    let plain = !key.is_empty() && key.chars().all(|c| c.is_ascii_lowercase() || c == '_');
    plain.then_some((key, value))
}

fn flush(page: &mut String, comment: &mut Vec<&str>) -> Result<()> {
    if !comment.is_empty() {
        writeln!(page, "{}", line(&comment.join(" ")))?;
        comment.clear();
    }
    Ok(())
}

/// Text that is no request of roff, whatever it begins with.
fn line(text: &str) -> String {
    let text = escaped(text);
    if text.starts_with(['.', '\'']) {
        format!("\\&{text}")
    } else {
        text
    }
}

fn escaped(text: &str) -> String {
    text.replace('\\', "\\e").replace('-', "\\-")
}

#[cfg(test)]
mod tests {
    use berth::{cli::Arguments, config::Config, config::SHIPPED, flags::Flags};
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn every_key_of_the_configuration_is_in_its_page() {
        let page = configuration(SHIPPED).unwrap();
        let toml::Value::Table(sections) = toml::Value::try_from(Config::default()).unwrap() else {
            panic!("no table");
        };
        for (section, keys) in sections {
            if section == "runtimes" {
                assert!(page.contains(".SS [runtimes."), "{page}");
                continue;
            }
            let after = page.split(&format!(".SS [{section}]\n")).nth(1);
            let own = after.unwrap_or_default().split(".SS ").next().unwrap_or_default();
            for key in keys.as_table().unwrap().keys() {
                assert!(
                    own.contains(&format!("\\fB{key}\\fR = ")),
                    "{section}.{key}\n{page}"
                );
            }
        }
    }

    #[test]
    fn every_command_and_option_is_in_the_pages() {
        for (command, section) in [(Flags::command(), "8"), (Arguments::command(), "1")] {
            let page = String::from_utf8(super::command(command.clone(), section).unwrap()).unwrap();
            covers(&page, &command, command.get_name());
        }
    }

    fn covers(page: &str, command: &Command, path: &str) {
        for argument in command.get_arguments() {
            if let Some(long) = argument.get_long() {
                let long = format!("\\-\\-{}\\fR", escaped(long));
                assert!(page.contains(&long), "{path} {long}");
            }
        }
        for inner in command.get_subcommands().filter(|inner| !inner.is_hide_set()) {
            let path = format!("{path} {}", inner.get_name());
            assert!(page.contains(&format!(".SS {path}")), "{path}\n{page}");
            covers(page, inner, &path);
        }
    }

    #[test]
    fn comments_are_with_their_keys() {
        let page = configuration(
            "# A file.\n\n[log]\n# How much\n# is told.\nlevel = \"info\"\n# group = 1\n\n# One more:\n# [runtimes.x]\n# type = \"y\"\n",
        )
        .unwrap();
        for part in [
            ".SH DESCRIPTION\nA file.\n",
            ".SS [log]\n.TP\n\\fBlevel\\fR = \"info\"\nHow much is told.\n.TP\n\\fBgroup\\fR = 1\n",
            "One more:\n.SS [runtimes.x]\n.TP\n\\fBtype\\fR = \"y\"\n",
        ] {
            assert!(page.contains(part), "{part}\n--\n{page}");
        }
    }
}
