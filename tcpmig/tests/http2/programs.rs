//! Clients that others made: curl and, where they are installed, those of nghttp2.

use std::process::{Output, Stdio};
use std::sync::Arc;

use tokio::process::Command;

use crate::app::bytes;
use crate::host::{Hosts, in_time, moment};

async fn run(program: &str, arguments: &[String]) -> Output {
    let mut command = Command::new(program);
    command
        .args(arguments)
        .stdin(Stdio::null())
        .kill_on_drop(true);
    command.output().await.expect("it starts")
}

/// Downloads on one connection, through moves all the time.
async fn curl(hosts: &Hosts, scheme: &str, files: u64, options: &[&str]) {
    const LEN: usize = 2_000_000;
    let port = hosts.address.port();
    let folder = tempfile::tempdir().unwrap();
    let mut arguments: Vec<String> = ["--silent", "--show-error", "--fail", "--noproxy", "*"]
        .map(str::to_owned)
        .to_vec();
    arguments.extend(options.iter().map(|&option| option.to_owned()));
    arguments.extend(["--max-time", "60"].map(str::to_owned));
    arguments.extend(["--limit-rate", "4M"].map(str::to_owned));
    arguments.extend(["--write-out", "%{num_connects} %{http_version}\\n"].map(str::to_owned));
    for file in 0..files {
        let into = folder.path().join(file.to_string());
        arguments.push("--output".into());
        arguments.push(into.to_str().unwrap().to_owned());
        arguments.push(format!(
            "{scheme}://server.example:{port}/sized/{file}?len={LEN}"
        ));
    }
    arguments.extend([
        "--resolve".into(),
        format!("server.example:{port}:127.0.0.1"),
    ]);
    let curl = tokio::spawn(async move { run("curl", &arguments).await });
    let mut moves = 0;
    while moves < 20
        && let Some(moved) = hosts.move_if_alive().await
    {
        moved.expect("it moves");
        moves += 1;
        moment().await;
    }
    let output = in_time(curl).await.unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{}: {said}", output.status);
    let connects = String::from_utf8(output.stdout).unwrap();
    assert!(
        connects.lines().all(|line| line.ends_with(" 2")),
        "{connects}"
    );
    for file in 0..files {
        let got = std::fs::read(folder.path().join(file.to_string())).unwrap();
        assert!(
            got == bytes(file, 0, LEN),
            "file {file}: {} bytes",
            got.len()
        );
    }
    assert_eq!(hosts.others().await, 0, "one connection");
}

#[tokio::test]
async fn curl_by_prior_knowledge() {
    let hosts = Hosts::new().await;
    // A second one on the connection curl 7.88 does not know how to begin, whoever serves it.
    curl(&hosts, "http", 1, &["--http2-prior-knowledge"]).await;
}

/// A server's certificate of its own, and the authority that curl is to trust.
fn tls() -> (tempfile::NamedTempFile, Arc<rustls::ServerConfig>) {
    use rustls::pki_types::pem::PemObject;
    use rustls::pki_types::{CertificateDer, PrivateKeyDer};
    use std::io::Write;
    let authority = tcpmig_transport::keys::Authority::create("web").unwrap();
    let issued = authority.issue("server.example").unwrap();
    let chain = CertificateDer::from_pem_slice(issued.cert_pem.as_bytes()).unwrap();
    let key = PrivateKeyDer::from_pem_slice(issued.key_pem.as_bytes()).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ServerConfig::builder_with_provider(provider);
    let config = config.with_safe_default_protocol_versions().unwrap();
    let config = config
        .with_no_client_auth()
        .with_single_cert(vec![chain], key);
    let mut config = config.unwrap();
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(authority.ca_pem().as_bytes()).unwrap();
    (file, Arc::new(config))
}

#[tokio::test]
async fn curl_over_tls_by_alpn() {
    let (authority, config) = tls();
    let hosts = Hosts::with(|movable| movable.over(tcpmig::tls::Tls::new(config.clone()))).await;
    let trusted = authority.path().to_str().unwrap().to_owned();
    curl(
        &hosts,
        "https",
        3,
        &["--http2", "--parallel", "--cacert", &trusted],
    )
    .await;
}

/// The same server, and a client that speaks HTTP/1.
#[tokio::test]
async fn a_client_of_http1_is_served_as_ever() {
    let hosts = Hosts::new().await;
    let url = format!("http://{}/", hosts.address);
    let arguments = [
        "--silent",
        "--fail",
        "--noproxy",
        "*",
        "--http1.1",
        &url,
        &url,
    ];
    let output = run("curl", &arguments.map(str::to_owned)).await;
    assert_eq!(output.stdout, b"aa");
}

#[tokio::test]
async fn nghttp_and_h2load() {
    let hosts = Hosts::new().await;
    let url = format!("http://{}/file/1?len=100000", hosts.address);
    let arguments = ["-n", "300", "-c", "1", "-m", "10", &url].map(str::to_owned);
    let load = tokio::spawn(async move { run("h2load", &arguments).await });
    for _ in 0..20 {
        if let Some(moved) = hosts.move_if_alive().await {
            moved.expect("it moves");
        }
        moment().await;
    }
    let output = in_time(load).await.unwrap();
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(
        said.contains("300 succeeded, 0 failed, 0 errored"),
        "{said}"
    );
    assert_eq!(hosts.others().await, 0, "one connection");
}
