//! Plugins that do as they like.

use std::time::Instant;

use super::*;
use crate::kind::{HasKind, Kind};

#[test]
fn plugins_that_misbehave_are_named_and_cleaned_up_after() {
    let del = r#"[ $CNI_COMMAND = DEL ] && { echo del >>$(dirname $0)/dels; exit 0; }; "#;
    for (case, body, kind, expected) in [
        (
            "garbage",
            "echo not json",
            Kind::Unavailable,
            "something else than a result",
        ),
        (
            "no address",
            "echo '{\"ips\":[]}'",
            Kind::Unavailable,
            "no address",
        ),
        ("silent", "exit 1", Kind::Unavailable, "said: nothing"),
        (
            "loud",
            "echo 'it broke' >&2; exit 3",
            Kind::Unavailable,
            "it broke",
        ),
        (
            "polite",
            r#"echo '{"cniVersion":"1.0.0","code":11,"msg":"try later","details":"pool is full"}'; exit 1"#,
            Kind::Unavailable,
            "try later: pool is full (code 11)",
        ),
        (
            "hangs",
            "sleep 1000 & sleep 1000",
            Kind::Unavailable,
            "did not end within 2 s",
        ),
        ("floods", "cat /dev/zero", Kind::Unavailable, "more than"),
        (
            "a list",
            "echo '[]'",
            Kind::Unavailable,
            "something else than a result",
        ),
        (
            "not text",
            r"printf '\200\377'",
            Kind::Unavailable,
            "something else than a result",
        ),
        (
            "deep",
            "yes '[' | head -100000 | tr -d '\\n'",
            Kind::Unavailable,
            "something else than a result",
        ),
        (
            "an address that is none",
            r#"echo '{"ips":[{"address":"10.9.0.7/16;reboot"},{"address":"here"}]}'"#,
            Kind::Unavailable,
            "is not an address",
        ),
        ("exit 127", "exit 127", Kind::Unavailable, "exit status: 127"),
        ("killed", "kill -9 $$", Kind::Unavailable, "signal: 9"),
        (
            "garbage and a code",
            r"printf '{\033[31mno'; exit 255",
            Kind::Unavailable,
            "{ [31mno",
        ),
        (
            "floods stderr",
            "cat /dev/zero >&2",
            Kind::Unavailable,
            "more than",
        ),
        (
            "long words",
            "yes word | head -c 900000 >&2; exit 1",
            Kind::Unavailable,
            "word word",
        ),
        (
            "holds its children's output",
            "for i in 1 2 3; do (sleep 1000; echo late) & done; wait",
            Kind::Unavailable,
            "did not end within 2 s",
        ),
        ("not a program", "", Kind::Unavailable, "cannot be run"),
    ] {
        on_a_node(|node| {
            let add = format!("{del}{body}");
            with_scripts(node, &[("good", &format!("{del}echo '{{}}'")), ("bad", &add)]);
            if case == "not a program" {
                fs::write(node.config.cni_bin_dirs[0].join("bad"), "no interpreter").unwrap();
            }
            let pod = node.pod(&id(4));
            let start = Instant::now();
            let error = node.run(node.network.attach(&pod)).unwrap_err();
            // The time-out is two seconds; a hang would be for ever.
            assert!(start.elapsed() < Duration::from_secs(60), "{case}");
            let message = error.to_string();
            assert!(
                message.contains(expected) && message.contains(NETWORK),
                "{case}: {message}"
            );
            assert_eq!(error.kind(), kind, "{case}");
            assert!(message.len() < 5000, "{case}");
            let dels = fs::read_to_string(node.config.cni_bin_dirs[0].join("dels")).unwrap();
            if case == "not a program" {
                // Its DEL failed too: the pod stays recorded until it works.
                assert_eq!(
                    (
                        dels.lines().count(),
                        node.store.network_sandboxes().unwrap().len()
                    ),
                    (1, 1)
                );
                assert!(node.run(node.network.detach(&pod.id)).is_err());
                fs::copy(
                    node.config.cni_bin_dirs[0].join("good"),
                    node.config.cni_bin_dirs[0].join("bad"),
                )
                .unwrap();
                node.detach(&pod.id);
            } else {
                assert_eq!(dels.lines().count(), 2, "{case}: DEL of the whole list");
            }
            assert_eq!(
                node.store.network_sandboxes().unwrap(),
                Vec::<String>::new(),
                "{case}"
            );
        });
    }
}

#[test]
fn all_that_a_hanging_plugin_started_is_killed() {
    on_a_node(|node| {
        let body = r#"[ $CNI_COMMAND = DEL ] && exit 0
            sh -c 'sleep 1000 & echo $! $$ >>'$(dirname $0)/pids'; wait' & echo $$ >>$(dirname $0)/pids; wait"#;
        with_scripts(node, &[("hangs", body)]);
        let message = node
            .run(node.network.attach(&node.pod(&id(7))))
            .unwrap_err()
            .to_string();
        assert!(
            message.contains("did not end within 2 s and was killed"),
            "{message}"
        );
        let pids = fs::read_to_string(file(node, "pids")).unwrap();
        let pids: Vec<&str> = pids.split_whitespace().collect();
        assert_eq!(pids.len(), 3, "{pids:?}");
        // Whoever reaps the orphans may take a moment.
        let lives = |pid: &&&str| match fs::read_to_string(format!("/proc/{pid}/stat")) {
            Ok(stat) => !stat.contains(") Z "),
            Err(_) => false,
        };
        until("the end of all", || pids.iter().filter(lives).count() == 0);
    });
}

#[test]
fn a_plugin_need_not_read_its_configuration() {
    on_a_node(|node| {
        // More than a pipe holds, in and out.
        with_scripts(node, &[("deaf", "")]);
        let padding = "x".repeat(300_000);
        let list = format!(
            r#"{{"cniVersion":"1.0.0","name":"{NETWORK}","plugins":[{{"type":"deaf","padding":"{padding}"}}]}}"#
        );
        with_conflist(node, &list);
        script(&file(node, ""), "deaf", &format!("exec <&-; echo '{RESULT}'"));
        assert_eq!(node.attach(&node.pod(&id(8))), [ip("10.9.0.7")]);
        let big = r#"cat >/dev/null; printf '%s' '{"ips":[{"address":"10.9.0.7/16"}],"more":"'
            head -c 900000 /dev/zero | tr '\0' x; echo '"}'"#;
        script(&file(node, ""), "deaf", big);
        assert_eq!(node.attach(&node.pod(&id(9))), [ip("10.9.0.7")]);
        node.detach(&id(8));
        node.detach(&id(9));
    });
}

#[test]
fn a_process_that_a_plugin_leaves_does_not_hold_it_up() {
    on_a_node(|node| {
        let body = r#"sleep 60 & echo $! >$(dirname $0)/left; echo '{"ips":[{"address":"10.9.0.7/16"}]}'"#;
        with_scripts(node, &[("leaver", body)]);
        let pod = node.pod(&id(5));
        let start = Instant::now();
        assert_eq!(node.attach(&pod), [ip("10.9.0.7")]);
        assert!(start.elapsed() < Duration::from_secs(30));
        // It may be a daemon that the plugin wants: it is let live.
        let left = fs::read_to_string(file(node, "left")).unwrap();
        assert!(Path::new("/proc").join(left.trim()).exists());
        shell(&format!("kill {left}"));
    });
}
