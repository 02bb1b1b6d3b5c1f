use super::*;
use crate::spec::tests::Case;

fn strings(list: &[&str]) -> Vec<String> {
    list.iter().map(|s| (*s).to_owned()).collect()
}

#[test]
fn command_and_args() {
    for (entrypoint, cmd, command, args, expected) in [
        (
            &["/ep"][..],
            &["c"][..],
            &[][..],
            &[][..],
            Some(&["/ep", "c"][..]),
        ),
        (&["/ep"], &["c"], &["/x"], &[], Some(&["/x"])),
        (&["/ep"], &["c"], &[], &["a"], Some(&["/ep", "a"])),
        (&["/ep"], &["c"], &["/x"], &["a"], Some(&["/x", "a"])),
        (&[], &["c"], &[], &[], Some(&["c"])),
        (&[""], &["c"], &[], &[], Some(&["c"])),
        (&[], &[], &[], &["a"], Some(&["a"])),
        (&[], &[], &[], &[], None),
        (&[""], &[], &[], &[], None),
        (&[], &[], &["/x\0y"], &[], None),
    ] {
        let mut case = Case::new();
        case.image.entrypoint = strings(entrypoint);
        case.image.cmd = strings(cmd);
        case.request.command = strings(command);
        case.request.args = strings(args);
        let made = case.with(arguments);
        assert_eq!(
            made.ok(),
            expected.map(strings),
            "{entrypoint:?} {cmd:?} {command:?} {args:?}"
        );
    }
}

#[test]
fn no_command_names_the_image_and_the_remedy() {
    let mut case = Case::new();
    case.image.entrypoint.clear();
    case.image.cmd.clear();
    let message = case.with(arguments).unwrap_err().to_string();
    assert!(
        message.contains("example.test/app:1") && message.contains("set command"),
        "{message}"
    );
}

fn env(case: &Case) -> Vec<String> {
    case.with(|inputs| environment(inputs, "/home/app")).unwrap().text
}

fn variable(key: &str, value: &[u8]) -> KeyValue {
    KeyValue {
        key: key.into(),
        value: value.into(),
    }
}

#[test]
fn environment_in_order() {
    let mut case = Case::new();
    case.image.env.clear();
    assert_eq!(env(&case), [DEFAULT_PATH, "HOSTNAME=pod-1", "HOME=/home/app"]);
    case.request.tty = true;
    case.image.env = strings(&["A=1", "PATH=/bin", "B=2", "A=3", "EMPTY="]);
    case.request.envs = vec![
        variable("B", b"9=9"),
        variable("C", b""),
        variable("HOSTNAME", b"mine"),
    ];
    assert_eq!(
        env(&case),
        [
            "PATH=/bin",
            "TERM=xterm",
            "HOSTNAME=mine",
            "A=3",
            "B=9=9",
            "EMPTY=",
            "C=",
            "HOME=/home/app"
        ]
    );
    case.request.envs.push(variable("HOME", b"/set"));
    assert_eq!(env(&case).last().unwrap(), "HOME=/set");
    case.image.env = strings(&["A=1", "A", "HOSTNAME"]);
    case.request.envs.clear();
    assert_eq!(env(&case), [DEFAULT_PATH, "TERM=xterm", "HOME=/home/app"]);
}

#[test]
fn values_that_are_not_utf8_survive() {
    let mut case = Case::new();
    case.image.env.clear();
    case.request.envs = vec![variable("RAW", b"a\xffb"), variable("TEXT", "ä".as_bytes())];
    let made = case.with(|inputs| environment(inputs, "/")).unwrap();
    assert_eq!(made.annotations.len(), 1);
    let bytes = environment_bytes(&made.text, &made.annotations);
    assert!(bytes.contains(&b"RAW=a\xffb".to_vec()));
    assert!(bytes.contains(&"TEXT=ä".as_bytes().to_vec()));
    // An edit of the spec wins over the annotation.
    let edited = environment_bytes(&strings(&["RAW=new"]), &made.annotations);
    assert_eq!(edited, [b"RAW=new"]);
}

#[test]
fn wrong_variables_are_refused() {
    for (key, value) in [("", &b"x"[..]), ("A=B", b"x"), ("A\0", b"x"), ("A", b"x\0")] {
        let mut case = Case::new();
        case.request.envs = vec![variable(key, value)];
        assert!(case.with(|inputs| environment(inputs, "/")).is_err(), "{key:?}");
    }
    let mut case = Case::new();
    case.image.env = strings(&["=x"]);
    assert!(case.with(|inputs| environment(inputs, "/")).is_err());
}

#[test]
fn working_folders() {
    for (request, image, expected) in [
        ("", "", Some("/")),
        ("", "/app", Some("/app")),
        ("", "app", Some("/app")),
        ("/work", "/app", Some("/work")),
        ("work", "/app", None),
    ] {
        let mut case = Case::new();
        case.request.working_dir = request.into();
        case.image.working_dir = image.into();
        let made = case.with(folder).ok();
        assert_eq!(made.as_deref(), expected, "{request:?} {image:?}");
    }
}

#[test]
fn log_paths() {
    for (folder, file, expected) in [
        ("/var/log/pods/x", "c/0.log", Ok(Some("/var/log/pods/x/c/0.log"))),
        (
            "/var/log/pods/x/",
            "/c/0.log",
            Ok(Some("/var/log/pods/x/c/0.log")),
        ),
        ("", "c/0.log", Ok(None)),
        ("/var/log/pods/x", "", Ok(None)),
        ("logs", "c/0.log", Err(())),
        ("/var/log/pods/x", "../../etc/passwd", Err(())),
        ("/var/log/pods/x", "c/", Err(())),
    ] {
        let request = ContainerConfig {
            log_path: file.into(),
            ..Default::default()
        };
        let made = log_path(folder, &request).map_err(|_| ());
        assert_eq!(
            made,
            expected.map(|path| path.map(str::to_owned)),
            "{folder:?} {file:?}"
        );
    }
}
