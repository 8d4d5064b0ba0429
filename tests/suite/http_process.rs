//! The real program as a process of its own: killed, stopped, and read by its operator.

use std::io::{BufRead, BufReader, Read};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use norma_adapters::{Generation, Scope};
use reqwest::Client;
use serde_json::{Value, json};

use crate::golden::llava_folder;
use crate::http_maker::{Made, make};
use crate::http_server::{BASE, chat_body, data_url, upload_form};

/// `norma serve` on a free port.
struct Process {
    child: Child,
    url: String,
    greeting: String,
    log: JoinHandle<String>,
}

fn norma() -> Command {
    Command::new(env!("CARGO_BIN_EXE_norma"))
}

impl Process {
    /// Starts it, and reads what it prints until it is ready.
    fn start(data_dir: &Path) -> Self {
        let mut child = norma()
            .args([
                "serve",
                "--listen",
                "127.0.0.1:0",
                "--metrics-listen",
                "none",
                "--base",
            ])
            .arg(llava_folder().join(BASE))
            .arg("--data-dir")
            .arg(data_dir)
            .args(["--kv-tokens", "4096"])
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut stderr = child.stderr.take().unwrap();
        let log = std::thread::spawn(move || {
            let mut text = String::new();
            stderr.read_to_string(&mut text).unwrap();
            text
        });
        let mut greeting = String::new();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        while !greeting.ends_with("ready\n") {
            greeting.push_str(&lines.next().expect("it ended before it was ready").unwrap());
            greeting.push('\n');
        }
        let address = greeting
            .lines()
            .find_map(|line| line.strip_prefix("address"))
            .unwrap();
        let url = address.trim().strip_suffix("/v1").unwrap().to_owned();
        Self {
            child,
            url,
            greeting,
            log,
        }
    }

    /// Kills it, as the power would.
    fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
        self.log.join().unwrap();
    }

    /// Tells it to stop; gives its exit code and its log.
    fn terminate(mut self) -> (Option<i32>, String) {
        let id = self.child.id().to_string();
        assert!(
            Command::new("kill")
                .args(["-TERM", &id])
                .status()
                .unwrap()
                .success()
        );
        let status = self.child.wait().unwrap();
        (status.code(), self.log.join().unwrap())
    }
}

/// Uploads all adapters again and again until the server is gone; gives what was acknowledged.
async fn upload_until_killed(
    url: String,
    all: Arc<Vec<Made>>,
    stop: Arc<AtomicBool>,
) -> Vec<usize> {
    let client = Client::new();
    let mut acknowledged = Vec::new();
    for index in (0..all.len()).cycle() {
        if stop.load(Ordering::Relaxed) {
            break;
        }
        let alias = format!("alias-{index}");
        let form = upload_form(&all[index].file, &[("alias", &alias)]);
        match client
            .post(format!("{url}/v1/adapters"))
            .multipart(form)
            .send()
            .await
        {
            Ok(response) if response.status().is_success() => acknowledged.push(index),
            Ok(response) => panic!("{}", response.status()),
            Err(_) => break,
        }
    }
    acknowledged
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_during_uploads_it_comes_back_with_all_that_it_had_acknowledged() {
    let all = make(|maker| {
        (0..8)
            .map(|seed| maker.adapter(seed, Scope::All))
            .collect::<Vec<_>>()
    });
    let all = Arc::new(all.await);
    let folder = tempfile::tempdir().unwrap();
    let mut promised = std::collections::BTreeSet::new();
    for round in 0..4u64 {
        let process = Process::start(folder.path());
        let stop = Arc::new(AtomicBool::new(false));
        let uploads: Vec<_> = (0..3)
            .map(|_| {
                let (url, all, stop) = (process.url.clone(), Arc::clone(&all), Arc::clone(&stop));
                tokio::spawn(upload_until_killed(url, all, stop))
            })
            .collect();
        // Another moment each round; whichever it is, the promise must hold.
        tokio::time::sleep(Duration::from_millis(20 + 37 * round)).await;
        process.kill();
        stop.store(true, Ordering::Relaxed);
        for upload in uploads {
            promised.extend(upload.await.unwrap());
        }
    }
    assert!(
        !promised.is_empty(),
        "no upload was acknowledged before the kill"
    );
    let process = Process::start(folder.path());
    let client = Client::new();
    assert_eq!(
        std::fs::read_dir(folder.path().join("incoming"))
            .unwrap()
            .count(),
        0
    );
    for index in promised {
        let url = format!("{}/v1/adapters/alias-{index}/download", process.url);
        let bytes = client.get(url).send().await.unwrap().bytes().await.unwrap();
        assert_eq!(Generation::of(&bytes), all[index].generation);
        let body = chat_body(&format!("alias-{index}"), None, "Hi", 3);
        let chat = client
            .post(format!("{}/v1/chat/completions", process.url))
            .json(&body);
        let answer: Value = chat.send().await.unwrap().json().await.unwrap();
        assert_eq!(answer["adapter_generation"], json!(all[index].generation));
    }
    assert_eq!(process.terminate().0, Some(0));
}

#[tokio::test(flavor = "multi_thread")]
async fn it_says_what_it_serves_logs_no_content_and_ends_with_zero() {
    let folder = tempfile::tempdir().unwrap();
    let process = Process::start(folder.path());
    for line in [
        "base       llama_a",
        "digest     sha256:",
        "sites      10 norms, 480 values",
        "memory ",
    ] {
        assert!(process.greeting.contains(line), "{}", process.greeting);
    }
    let client = Client::new();
    let chat = format!("{}/v1/chat/completions", process.url);
    let mut body = chat_body(BASE, Some("wide.png"), "zebra question", 5);
    let answer: Value = client
        .post(&chat)
        .json(&body)
        .send()
        .await
        .unwrap()
        .json()
        .await
        .unwrap();
    body["model"] = json!("zebra-model");
    assert_eq!(
        client
            .post(&chat)
            .json(&body)
            .send()
            .await
            .unwrap()
            .status(),
        404
    );
    body["temperature"] = json!("zebra");
    assert_eq!(
        client
            .post(&chat)
            .json(&body)
            .send()
            .await
            .unwrap()
            .status(),
        400
    );
    let broken = client.post(&chat).body("{\"zebra\":").send().await.unwrap();
    assert_eq!(broken.status(), 400);
    let named = client
        .get(format!("{}/version", process.url))
        .header("x-request-id", "mine-1");
    assert_eq!(
        named.send().await.unwrap().headers()["x-request-id"],
        "mine-1"
    );
    let (code, log) = process.terminate();
    assert_eq!(code, Some(0));
    assert_eq!(log.matches("norma::access").count(), 5, "{log}");
    assert!(
        log.contains("id=mine-1") && log.contains("completion_tokens=5"),
        "{log}"
    );
    assert!(!log.contains("zebra"), "{log}");
    let text = answer["choices"][0]["message"]["content"].as_str().unwrap();
    assert!(
        !log.contains(text) && !log.contains(&data_url("wide.png")[..60]),
        "{log}"
    );
}

#[test]
fn mistakes_on_the_command_line_are_one_line_and_not_zero() {
    let folder = tempfile::tempdir().unwrap();
    let base = llava_folder().join(BASE).display().to_string();
    let data = folder.path().display().to_string();
    for (args, says) in [
        (
            vec!["--base", "/nowhere", "--data-dir", &data],
            "`config.json` could not be read",
        ),
        (
            vec![
                "--base",
                &base,
                "--data-dir",
                &data,
                "--listen",
                "0.0.0.0:0",
            ],
            "which needs --keys",
        ),
        (
            vec!["--base", &base, "--data-dir", &data, "--device", "tpu"],
            "--device tpu",
        ),
        (
            vec!["--base", &base, "--data-dir", &data, "--keys", "/nowhere"],
            "file of keys",
        ),
    ] {
        let output = norma().arg("serve").args(&args).output().unwrap();
        let stderr = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(1), "{stderr}");
        assert!(
            stderr.starts_with("norma: ") && stderr.contains(says),
            "{stderr}"
        );
        assert_eq!(stderr.lines().count(), 1, "{stderr}");
    }
    let output = norma()
        .args(["key", "new", "--tenant", "t", "--roles", "infer,manage"])
        .output();
    let text = String::from_utf8(output.unwrap().stdout).unwrap();
    let line = text.lines().last().unwrap();
    let key = text
        .lines()
        .find(|line| line.contains("norma_"))
        .unwrap()
        .trim();
    let caller = norma::http::Keys::parse(line)
        .unwrap()
        .caller(Some(key))
        .unwrap();
    assert_eq!(&*caller.tenant, "t");
}
