//! Exec and attach.

use serde_json::{Value, json};

use super::{
    websocket_client::{BINARY, PING, PONG, TEXT},
    *,
};

const V4: &str = "v4.channel.k8s.io";

fn status(bytes: &[u8]) -> Value {
    serde_json::from_slice(bytes).unwrap()
}

#[tokio::test]
async fn spdy_v4_has_output_exit_code_and_an_orderly_end() {
    let served = Served::start().await;
    let url = served.exec(&["sh", "-c", "echo out; echo err >&2; exit 7"], false);
    let mut client = SpdyClient::connect(&url, V4).await;
    let ids = client.open(&["error", "stdout", "stderr"]).await;
    let mut order = Vec::new();
    let mut all: std::collections::HashMap<u32, Vec<u8>> = Default::default();
    loop {
        match client.read.event().await {
            Event::Data(id, bytes) => all.entry(id).or_default().extend_from_slice(&bytes),
            Event::Fin(id) => order.push(id),
            Event::GoAway => break,
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(client.read.event().await, Event::Closed);
    assert_eq!(
        (&all[&ids["stdout"]][..], &all[&ids["stderr"]][..]),
        (&b"out\n"[..], &b"err\n"[..])
    );
    let status = status(&all[&ids["error"]]);
    assert_eq!(
        status["details"]["causes"],
        json!([{"reason": "ExitCode", "message": "7"}])
    );
    assert_eq!(order.len(), 3);
    assert_eq!(order.last(), Some(&ids["error"]), "the status is last");
    served.quiet().await;
}

#[tokio::test]
async fn spdy_versions_say_failures_their_own_way() {
    let served = Served::start().await;
    for (versions, success, failure) in [
        (
            "channel.k8s.io",
            "",
            "command terminated with non-zero exit code: 3",
        ),
        (
            "v2.channel.k8s.io",
            "",
            "command terminated with non-zero exit code: 3",
        ),
        (
            "v3.channel.k8s.io",
            "",
            "command terminated with non-zero exit code: 3",
        ),
        (V4, "\"status\":\"Success\"", "\"reason\":\"ExitCode\""),
    ] {
        for (code, expected) in [("0", success), ("3", failure)] {
            let url = served.exec(&["sh", "-c", &format!("exit {code}")], false);
            let mut client = SpdyClient::connect(&url, versions).await;
            let ids = client.open(&["error", "stdout", "stderr"]).await;
            let all = client.read.all().await;
            let said = all.get(&ids["error"]).cloned().unwrap_or_default();
            let said = String::from_utf8(said).unwrap();
            assert!(
                said.contains(expected) && said.is_empty() == expected.is_empty(),
                "{versions}: {said}"
            );
        }
    }
}

#[tokio::test]
async fn a_command_that_cannot_start_is_an_internal_error() {
    let served = Served::start().await;
    let url = served.exec(&["/nonexistent"], false);
    let mut client = SpdyClient::connect(&url, V4).await;
    let ids = client.open(&["error", "stdout", "stderr"]).await;
    let status = status(&client.read.all().await[&ids["error"]]);
    assert_eq!(
        (&status["reason"], &status["code"]),
        (&json!("InternalError"), &json!(500))
    );
    assert!(
        status["message"]
            .as_str()
            .unwrap()
            .contains("run /nonexistent in c")
    );
}

#[tokio::test]
async fn input_half_closes_and_output_goes_on() {
    let served = Served::start().await;
    let url = served.exec(&["sh", "-c", "cat; echo after"], true);
    let mut client = SpdyClient::connect(&url, V4).await;
    let ids = client.open(&["error", "stdin", "stdout", "stderr"]).await;
    client.write.data(ids["stdin"], b"in\n").await;
    client.write.ping(5).await;
    client.write.fin(ids["stdin"]).await;
    let all = client.read.all().await;
    assert_eq!(all[&ids["stdout"]], b"in\nafter\n");
    assert_eq!(status(&all[&ids["error"]])["status"], "Success");
}

#[tokio::test]
async fn pings_are_answered() {
    let served = Served::start().await;
    let url = served.exec(&["cat"], true);
    let mut client = SpdyClient::connect(&url, V4).await;
    client.open(&["error", "stdin", "stdout", "stderr"]).await;
    client.write.ping(7).await;
    assert_eq!(client.read.event().await, Event::Ping(7));
}

#[tokio::test]
async fn a_reset_of_one_output_leaves_the_other() {
    let served = Served::start().await;
    let url = served.exec(&["sh", "-c", "read x; seq 1 100000; echo end >&2"], true);
    let mut client = SpdyClient::connect(&url, V4).await;
    let ids = client.open(&["error", "stdin", "stdout", "stderr"]).await;
    client.write.reset(ids["stdout"]).await;
    client.write.data(ids["stdin"], b"go\n").await;
    let all = client.read.all().await;
    assert_eq!(all[&ids["stderr"]], b"end\n");
    assert_eq!(status(&all[&ids["error"]])["status"], "Success");
}

#[tokio::test]
async fn input_nobody_reads_does_not_hold_the_session() {
    let served = Served::start().await;
    let url = served.exec(&["sh", "-c", "exec <&-; sleep 1; echo done"], true);
    let mut client = SpdyClient::connect(&url, V4).await;
    let ids = client.open(&["error", "stdin", "stdout", "stderr"]).await;
    for _ in 0..256 {
        client.write.data(ids["stdin"], &[0; 32 * 1024]).await;
    }
    assert_eq!(client.read.all().await[&ids["stdout"]], b"done\n");
}

#[tokio::test]
async fn a_client_that_vanishes_leaves_no_process() {
    let served = Served::start().await;
    for stdin in [0_usize, 4 << 20] {
        let url = served.exec(&["sleep", "1000"], true);
        let mut client = SpdyClient::connect(&url, V4).await;
        let ids = client.open(&["error", "stdin", "stdout", "stderr"]).await;
        for _ in 0..stdin / 32_768 {
            client.write.data(ids["stdin"], &[0; 32 * 1024]).await;
        }
        while served.backend.alive.load(Ordering::SeqCst) == 0 {
            tokio::task::yield_now().await;
        }
        drop(client);
        served.quiet().await;
    }
}

#[tokio::test]
async fn streams_that_never_come_are_waited_for_only_so_long() {
    let config = config::Streaming {
        creation_timeout: 1,
        ..Default::default()
    };
    let served = Served::with(config).await;
    let mut client = SpdyClient::connect(&served.exec(&["true"], false), V4).await;
    let ids = client.open(&["error", "stdout"]).await;
    let said = client.read.all().await.remove(&ids["error"]).unwrap();
    assert!(
        String::from_utf8(said)
            .unwrap()
            .contains("timed out waiting for client to create streams")
    );
}

#[tokio::test]
async fn an_idle_connection_ends() {
    let config = config::Streaming {
        idle_timeout: 1,
        ..Default::default()
    };
    let served = Served::with(config).await;
    let mut client = SpdyClient::connect(&served.exec(&["sleep", "1000"], false), V4).await;
    client.open(&["error", "stdout", "stderr"]).await;
    assert_eq!(client.read.event().await, Event::Closed);
    served.quiet().await;
}

#[tokio::test]
async fn a_stopping_server_says_so_and_leaves_nothing() {
    let mut served = Served::start().await;
    let mut client = SpdyClient::connect(&served.exec(&["sleep", "1000"], false), V4).await;
    let ids = client.open(&["error", "stdout", "stderr"]).await;
    served.stop.take().unwrap().send(()).unwrap();
    let said = client.read.all().await.remove(&ids["error"]).unwrap();
    assert!(
        status(&said)["message"]
            .as_str()
            .unwrap()
            .contains("berthd is stopping")
    );
    served.quiet().await;
    served.task.await.unwrap();
}

#[tokio::test]
async fn resizes_arrive_in_order() {
    let served = Served::start().await;
    let request = ExecRequest {
        container: "c".into(),
        command: vec!["cat".into()],
        stdin: true,
        stdout: true,
        stderr: false,
        tty: true,
    };
    let mut client = SpdyClient::connect(&served.urls.exec(request).unwrap(), V4).await;
    let ids = client.open(&["error", "stdin", "stdout", "resize"]).await;
    client
        .write
        .data(ids["resize"], b"{\"Width\":80,\"Height\":24}{\"Width\":13")
        .await;
    client.write.data(ids["resize"], b"2,\"Height\":43}\n").await;
    client.write.data(ids["stdin"], b"x").await;
    assert!(matches!(client.read.event().await, Event::Data(..)));
    let late = Instant::now() + Duration::from_secs(5);
    while served.backend.resizes.lock().unwrap().len() < 2 {
        assert!(Instant::now() < late);
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let sizes: Vec<u16> = served
        .backend
        .resizes
        .lock()
        .unwrap()
        .iter()
        .map(|size| size.width)
        .collect();
    assert_eq!(sizes, [80, 132]);
}

#[tokio::test]
async fn attach_detaches_or_closes_at_the_end_of_input() {
    let served = Served::start().await;
    for container in ["once", "again"] {
        let mut client = SpdyClient::connect(&served.attach(container), V4).await;
        let ids = client.open(&["error", "stdin", "stdout"]).await;
        client.write.data(ids["stdin"], b"hello\n").await;
        let echo = client.read.event().await;
        assert_eq!(echo, Event::Data(ids["stdout"], "hello\n".into()));
        client.write.fin(ids["stdin"]).await;
        let all = client.read.all().await;
        assert_eq!(status(&all[&ids["error"]])["status"], "Success");
    }
    served.quiet().await;
}

#[tokio::test]
async fn websocket_protocols_from_v1_to_v5() {
    let served = Served::start().await;
    for (protocol, object) in [
        ("", false),
        ("channel.k8s.io", false),
        ("v2.channel.k8s.io", false),
        ("v3.channel.k8s.io", false),
        (V4, true),
        ("v5.channel.k8s.io", true),
    ] {
        let url = served.exec(&["sh", "-c", "read x; echo $x; echo err >&2; exit 9"], true);
        let mut client = WebSocketClient::connect(&url, protocol).await;
        assert_eq!(
            client.read.frame().await.unwrap(),
            (BINARY, vec![1]),
            "the greeting"
        );
        client.write.frame(true, PING, b"p").await;
        assert_eq!(client.read.frame().await.unwrap(), (PONG, b"p".to_vec()));
        client.write.frame(false, BINARY, b"\0hel").await;
        client.write.frame(true, 0, b"lo\n").await;
        let [_, stdout, stderr, error, _] = client.read.all().await;
        assert_eq!(
            (&stdout[..], &stderr[..]),
            (&b"hello\n"[..], &b"err\n"[..]),
            "{protocol}"
        );
        if object {
            assert_eq!(status(&error)["details"]["causes"][0]["message"], "9");
        } else {
            assert_eq!(error, b"command terminated with non-zero exit code: 9");
        }
    }
    served.quiet().await;
}

#[tokio::test]
async fn websocket_base64() {
    let served = Served::start().await;
    for protocol in ["base64.channel.k8s.io", "v4.base64.channel.k8s.io"] {
        let url = served.exec(&["head", "-c", "3"], true);
        let mut client = WebSocketClient::connect(&url, protocol).await;
        assert_eq!(client.read.frame().await.unwrap(), (TEXT, b"1".to_vec()));
        client.write.frame(true, TEXT, b"0Zm9v").await;
        assert_eq!(client.read.frame().await.unwrap(), (TEXT, b"1Zm9v".to_vec()));
    }
}

#[tokio::test]
async fn websocket_v5_closes_the_input() {
    let served = Served::start().await;
    let url = served.exec(&["sh", "-c", "cat; echo after"], true);
    let mut client = WebSocketClient::connect(&url, "v5.channel.k8s.io").await;
    client.write.data(0, b"in\n").await;
    client.write.frame(true, BINARY, &[255, 0]).await;
    let [_, stdout, _, error, _] = client.read.all().await;
    assert_eq!(stdout, b"in\nafter\n");
    assert_eq!(status(&error)["status"], "Success");
}

#[tokio::test(flavor = "multi_thread")]
async fn spdy_carries_every_byte_both_ways() {
    let (served, length) = (Served::start().await, large());
    let mut client = SpdyClient::connect(&served.exec(&["cat"], true), V4).await;
    let ids = client.open(&["error", "stdin", "stdout", "stderr"]).await;
    let (start, stdin) = (Instant::now(), ids["stdin"]);
    let SpdyClient { mut write, mut read } = client;
    let sent = tokio::spawn(async move {
        let mut pattern = Pattern::new(length);
        while let Some(piece) = pattern.next() {
            write.data(stdin, &piece).await;
        }
        write.fin(stdin).await;
        (pattern.digest(), write)
    });
    let mut hash = Sha256::new();
    loop {
        match read.event().await {
            Event::Data(id, bytes) if id == ids["stdout"] => hash.update(&bytes),
            Event::Data(id, bytes) if id == ids["error"] => {
                assert_eq!(status(&bytes)["status"], "Success");
            }
            Event::Fin(_) => {}
            Event::GoAway => break,
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(sent.await.unwrap().0, hash.finalize().to_vec());
    say_throughput("exec over SPDY, there and back", length, start);
}

#[tokio::test(flavor = "multi_thread")]
async fn websocket_carries_every_byte_both_ways() {
    let (served, length) = (Served::start().await, large());
    for (what, url) in [
        ("exec", served.exec(&["cat"], true)),
        ("attach", served.attach("once")),
    ] {
        let client = WebSocketClient::connect(&url, "v5.channel.k8s.io").await;
        let start = Instant::now();
        let WebSocketClient { mut write, mut read } = client;
        let sent = tokio::spawn(async move {
            let mut pattern = Pattern::new(length);
            while let Some(piece) = pattern.next() {
                write.data(0, &piece).await;
            }
            write.frame(true, BINARY, &[255, 0]).await;
            (pattern.digest(), write)
        });
        let mut hash = Sha256::new();
        while let Some((BINARY, payload)) = read.frame().await {
            if payload[0] == 1 {
                hash.update(&payload[1..]);
            }
        }
        assert_eq!(sent.await.unwrap().0, hash.finalize().to_vec());
        say_throughput(&format!("{what} over WebSocket, there and back"), length, start);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn two_hundred_sessions_at_once() {
    let served = Arc::new(Served::start().await);
    let mut tasks = tokio::task::JoinSet::new();
    for number in 0..200 {
        let served = served.clone();
        tasks.spawn(async move {
            let url = served.exec(&["sh", "-c", "read x; echo $x; sleep 1000"], true);
            let mut client = SpdyClient::connect(&url, V4).await;
            let ids = client.open(&["error", "stdin", "stdout", "stderr"]).await;
            client
                .write
                .data(ids["stdin"], format!("{number}\n").as_bytes())
                .await;
            let echo = client.read.event().await;
            assert_eq!(echo, Event::Data(ids["stdout"], format!("{number}\n").into()));
            client
        });
    }
    let clients = tasks.join_all().await;
    assert_eq!(served.backend.alive.load(Ordering::SeqCst), 200);
    drop(clients);
    served.quiet().await;
}
