//! Stop signals: of the request as an enum, of the image as a name or a number.
//!
//! Real-time signals count from 34 to 64, as libc does: the kernel's 32 and 33
//! belong to the thread library.

use super::Error;
use crate::proto::cri::{ContainerConfig, Signal};

const SIGTERM: i32 = 15;
const RTMIN: i32 = 34;
const RTMAX: i32 = 64;

/// Names without "SIG"; of every architecture that the agent runs on.
const NAMES: &[(&str, i32)] = &[
    ("ABRT", libc::SIGABRT),
    ("ALRM", libc::SIGALRM),
    ("BUS", libc::SIGBUS),
    ("CHLD", libc::SIGCHLD),
    ("CLD", libc::SIGCHLD),
    ("CONT", libc::SIGCONT),
    ("FPE", libc::SIGFPE),
    ("HUP", libc::SIGHUP),
    ("ILL", libc::SIGILL),
    ("INT", libc::SIGINT),
    ("IO", libc::SIGIO),
    ("IOT", libc::SIGABRT),
    ("KILL", libc::SIGKILL),
    ("PIPE", libc::SIGPIPE),
    ("POLL", libc::SIGIO),
    ("PROF", libc::SIGPROF),
    ("PWR", libc::SIGPWR),
    ("QUIT", libc::SIGQUIT),
    ("SEGV", libc::SIGSEGV),
    ("STKFLT", libc::SIGSTKFLT),
    ("STOP", libc::SIGSTOP),
    ("SYS", libc::SIGSYS),
    ("TERM", libc::SIGTERM),
    ("TRAP", libc::SIGTRAP),
    ("TSTP", libc::SIGTSTP),
    ("TTIN", libc::SIGTTIN),
    ("TTOU", libc::SIGTTOU),
    ("URG", libc::SIGURG),
    ("USR1", libc::SIGUSR1),
    ("USR2", libc::SIGUSR2),
    ("VTALRM", libc::SIGVTALRM),
    ("WINCH", libc::SIGWINCH),
    ("XCPU", libc::SIGXCPU),
    ("XFSZ", libc::SIGXFSZ),
];

/// The number of a signal of the CRI; `None` for RUNTIME_DEFAULT.
pub fn signal_number(signal: Signal) -> Option<i32> {
    // The enum's own names are those of signal(7), "SIGNAL_SIGRTMINPLUS3".
    let name = signal.as_str_name().strip_prefix("SIGNAL_SIG")?;
    parse_signal(&name.replace("PLUS", "+").replace("MINUS", "-"))
}

/// The signal of the CRI for a number, for ContainerStatus; RUNTIME_DEFAULT for one
/// that the CRI does not name.
pub fn signal_of(number: i32) -> Signal {
    let all = (1..).map_while(|value| Signal::try_from(value).ok());
    all.into_iter()
        .find(|signal| signal_number(*signal) == Some(number))
        .unwrap_or(Signal::RuntimeDefault)
}

/// The number of a signal given as "SIGTERM", "term", "RTMIN+3" or "15".
pub fn parse_signal(text: &str) -> Option<i32> {
    if let Ok(number) = text.parse::<i32>() {
        return (1..=RTMAX).contains(&number).then_some(number);
    }
    let upper = text.to_ascii_uppercase();
    let name = upper.strip_prefix("SIG").unwrap_or(&upper);
    if let Some((_, number)) = NAMES.iter().find(|(known, _)| *known == name) {
        return Some(*number);
    }
    let number = if let Some(offset) = name.strip_prefix("RTMIN") {
        RTMIN + distance(offset, '+')?
    } else {
        RTMAX - distance(name.strip_prefix("RTMAX")?, '-')?
    };
    (RTMIN..=RTMAX).contains(&number).then_some(number)
}

/// "+3" with sign '+' is 3, "" is 0.
fn distance(text: &str, sign: char) -> Option<i32> {
    if text.is_empty() {
        return Some(0);
    }
    let digits = text.strip_prefix(sign)?;
    let plain = !digits.is_empty() && digits.len() <= 2 && digits.bytes().all(|b| b.is_ascii_digit());
    plain.then(|| digits.parse().ok()).flatten()
}

/// The signal that stops the container: of the request, else of the image, else
/// SIGTERM. An image whose signal is nonsense still runs, with a warning.
pub(super) fn stop_signal(
    request: &ContainerConfig,
    image_signal: &str,
    warnings: &mut Vec<String>,
) -> Result<i32, Error> {
    let asked = Signal::try_from(request.stop_signal).map_err(|_| {
        Error::invalid(
            "stop_signal",
            format!("{} is not a signal of the CRI", request.stop_signal),
        )
    })?;
    if let Some(number) = signal_number(asked) {
        return Ok(number);
    }
    if image_signal.is_empty() {
        return Ok(SIGTERM);
    }
    Ok(parse_signal(image_signal).unwrap_or_else(|| {
        warnings.push(format!(
            "the image's stop signal {image_signal:?} is not a signal; SIGTERM is used"
        ));
        SIGTERM
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_signal_of_the_cri_has_its_number() {
        let numbers: Vec<Option<i32>> = (0..=65)
            .map(|n| signal_number(Signal::try_from(n).unwrap()))
            .collect();
        assert_eq!(numbers[0], None);
        assert!(numbers[1..].iter().all(Option::is_some), "{numbers:?}");
        let real_time: Vec<i32> = numbers[35..].iter().map(|n| n.unwrap()).collect();
        assert_eq!(real_time, (34..=64).collect::<Vec<i32>>());
        assert_eq!(numbers[23], Some(15));
        for number in (1..=64).filter(|number| ![32, 33].contains(number)) {
            assert_eq!(signal_number(signal_of(number)), Some(number));
        }
        assert_eq!(signal_of(6), Signal::Sigabrt);
        assert_eq!(signal_of(33), Signal::RuntimeDefault);
    }

    #[test]
    fn names_and_numbers_of_images() {
        for (text, number) in [
            ("SIGTERM", Some(15)),
            ("quit", Some(3)),
            ("Sigint", Some(2)),
            ("9", Some(9)),
            ("SIGRTMIN+3", Some(37)),
            ("RTMAX-2", Some(62)),
            ("RTMIN", Some(34)),
            ("SIGRTMAX", Some(64)),
            ("0", None),
            ("65", None),
            ("-9", None),
            ("SIG", None),
            ("", None),
            ("RTMIN+31", None),
            ("RTMIN-1", None),
            ("RTMIN+", None),
            ("RTMIN++1", None),
            ("RTMIN+999999999999", None),
        ] {
            assert_eq!(parse_signal(text), number, "{text:?}");
        }
    }

    #[test]
    fn the_request_wins_and_nonsense_is_sigterm() {
        let mut warnings = Vec::new();
        let mut request = ContainerConfig::default();
        assert_eq!(stop_signal(&request, "", &mut warnings).unwrap(), 15);
        assert_eq!(stop_signal(&request, "SIGQUIT", &mut warnings).unwrap(), 3);
        assert!(warnings.is_empty());
        assert_eq!(stop_signal(&request, "SIGFOO", &mut warnings).unwrap(), 15);
        assert_eq!(warnings.len(), 1);
        request.stop_signal = Signal::Sigusr1.into();
        assert_eq!(stop_signal(&request, "SIGQUIT", &mut warnings).unwrap(), 10);
        request.stop_signal = 99;
        assert!(stop_signal(&request, "", &mut warnings).is_err());
    }
}
