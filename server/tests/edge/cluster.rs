//! The private cluster: real coordinators, killed.

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    time::{Duration, Instant},
};

/// A data folder for a test; whatever cluster is left in it is stopped with the test.
pub(crate) struct Folder(tempfile::TempDir);

impl Folder {
    pub(crate) fn new(mode: u32) -> Self {
        let folder = tempfile::tempdir().unwrap();
        fs::set_permissions(folder.path(), fs::Permissions::from_mode(mode)).unwrap();
        Self(folder)
    }

    /// The coordinator's data folder.
    pub(crate) fn data(&self) -> PathBuf {
        self.0.path().join("data")
    }

    /// A file beside the data folder.
    pub(crate) fn file(&self, name: &str, content: &str) -> PathBuf {
        let path = self.0.path().join(name);
        fs::write(&path, content).unwrap();
        path
    }

    fn postmaster(&self) -> Option<u32> {
        let text = fs::read_to_string(self.data().join("postgres/cluster/postmaster.pid")).ok()?;
        text.lines().next()?.trim().parse().ok()
    }

    /// Processes of Postgres that work in the cluster and are no child of another such process.
    fn postmasters(&self) -> Vec<u32> {
        let Ok(cluster) = self.data().join("postgres/cluster").canonicalize() else {
            return Vec::new();
        };
        let in_cluster = |pid: u32| fs::read_link(format!("/proc/{pid}/cwd")).is_ok_and(|folder| folder == cluster);
        let all = fs::read_dir("/proc").unwrap().flatten();
        let pids = all
            .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
            .filter(|pid| in_cluster(*pid));
        let pids: Vec<u32> = pids.collect();
        pids.iter()
            .copied()
            .filter(|pid| parent(*pid).is_none_or(|parent| !pids.contains(&parent)))
            .collect()
    }

    /// What is left of [`Self::postmasters`] a moment after they were stopped: the file that names a postmaster goes
    /// before its process does.
    fn postmasters_left(&self) -> Vec<u32> {
        let deadline = Instant::now() + Duration::from_secs(10);
        while !self.postmasters().is_empty() && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(50));
        }
        self.postmasters()
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        for pid in self.postmasters() {
            kill("-QUIT", pid);
        }
        if let Ok(home) = fs::read_link(self.data().join("postgres")) {
            let _ = fs::remove_dir_all(home);
        }
    }
}

pub(crate) struct Coordinator {
    child: Child,
    /// Address and port.
    pub(crate) url: String,
    log: PathBuf,
}

impl Drop for Coordinator {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

pub(crate) fn temponas() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_temponas"));
    command.env_remove("DATABASE_URL").stdin(Stdio::null());
    command
}

impl Coordinator {
    pub(crate) fn start(folder: &Folder) -> Self {
        let port = std::net::TcpListener::bind("127.0.0.1:0")
            .unwrap()
            .local_addr()
            .unwrap()
            .port();
        let log = folder.0.path().join(format!("log-{port}"));
        let mut command = temponas();
        command
            .arg("serve")
            .arg("--data-dir")
            .arg(folder.data())
            .args(["--listen", &format!("127.0.0.1:{port}")]);
        let child = command.stderr(fs::File::create(&log).unwrap()).spawn().unwrap();
        let mut coordinator = Self {
            child,
            url: format!("127.0.0.1:{port}"),
            log,
        };
        coordinator.wait_until_healthy();
        coordinator
    }

    /// The status of an answer.
    fn get(&self, path: &str) -> Option<u16> {
        use std::io::{Read, Write};
        let mut stream = std::net::TcpStream::connect(&self.url).ok()?;
        stream.set_read_timeout(Some(Duration::from_secs(15))).ok()?;
        write!(
            stream,
            "GET {path} HTTP/1.1\r\nhost: {}\r\nconnection: close\r\n\r\n",
            self.url
        )
        .ok()?;
        let mut text = String::new();
        stream.read_to_string(&mut text).ok()?;
        text.split(' ').nth(1)?.parse().ok()
    }

    fn wait_until_healthy(&mut self) {
        let deadline = Instant::now() + Duration::from_secs(90);
        while self.get("/healthz") != Some(200) {
            let ended = self.child.try_wait().unwrap();
            assert!(
                ended.is_none() && Instant::now() < deadline,
                "{ended:?}\n{}",
                self.log()
            );
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }

    fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    fn stop(mut self) {
        kill("-TERM", self.child.id());
        let status = self.child.wait().unwrap();
        assert!(status.success(), "{status}\n{}", self.log());
    }
}

fn kill(signal: &str, pid: u32) {
    // The shell's own: the program is not everywhere.
    let order = format!("kill {signal} {pid}");
    Command::new("sh").args(["-c", &order]).status().unwrap();
}

fn parent(pid: u32) -> Option<u32> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    text.rsplit(") ").next()?.split(' ').nth(1)?.parse().ok()
}

fn token(folder: &Path, arguments: &[&str]) -> Output {
    let mut command = temponas();
    command.arg("token").args(arguments).arg("--data-dir").arg(folder);
    command.output().unwrap()
}

fn is_root() -> bool {
    fs::metadata("/proc/self").is_ok_and(|found| std::os::unix::fs::MetadataExt::uid(&found) == 0)
}

#[test]
fn a_killed_coordinator_leaves_a_cluster_that_the_next_one_takes_over() {
    let folder = Folder::new(0o755);
    let first = Coordinator::start(&folder);
    let made = token(&folder.data(), &["create", "--role", "viewer", "--name", "kept"]);
    assert!(made.status.success(), "{made:?}");
    assert_eq!(folder.postmasters().len(), 1, "the command used the running cluster");
    first.kill();
    let second = Coordinator::start(&folder);
    assert_eq!(folder.postmasters().len(), 1, "never started twice\n{}", second.log());
    let listed = token(&folder.data(), &["list"]);
    assert!(String::from_utf8_lossy(&listed.stdout).contains("kept"), "{listed:?}");
    second.stop();
    assert_eq!(
        folder.postmasters_left(),
        Vec::<u32>::new(),
        "the last user stops the cluster"
    );
}

#[test]
fn a_cluster_that_outlived_its_coordinator_is_adopted() {
    let folder = Folder::new(0o755);
    Coordinator::start(&folder).stop();
    // Started by hand, without asking to end with its parent: as after an upgrade, or where the system cannot do it.
    let cluster = folder.data().join("postgres/cluster");
    let owner = std::os::unix::fs::MetadataExt::uid(&fs::metadata(&cluster).unwrap());
    let opts = fs::read_to_string(cluster.join("postmaster.opts")).unwrap();
    let mut words = opts.split_whitespace().map(|word| word.trim_matches('"'));
    let mut command = Command::new(words.next().unwrap());
    command
        .args(words)
        .current_dir(&cluster)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    std::os::unix::process::CommandExt::uid(&mut command, owner);
    let mut postgres = command.spawn().unwrap();
    let coordinator = Coordinator::start(&folder);
    assert_eq!(folder.postmaster(), Some(postgres.id()), "{}", coordinator.log());
    assert_eq!(folder.postmasters(), [postgres.id()]);
    // It ends with its last user like any other.
    let reaper = std::thread::spawn(move || postgres.wait().unwrap());
    coordinator.stop();
    reaper.join().unwrap();
    assert_eq!(folder.postmasters_left(), Vec::<u32>::new());
}

#[test]
fn a_killed_postgres_is_started_again_and_requests_meanwhile_are_told_to_come_back() {
    let folder = Folder::new(0o755);
    let mut coordinator = Coordinator::start(&folder);
    let before = folder.postmaster().unwrap();
    kill("-9", before);
    let mut answers = Vec::new();
    let deadline = Instant::now() + Duration::from_secs(60);
    while folder.postmaster().is_none_or(|pid| pid == before) && Instant::now() < deadline {
        answers.push(coordinator.get("/v1/searches"));
        std::thread::sleep(Duration::from_millis(20));
    }
    coordinator.wait_until_healthy();
    assert!(
        answers.iter().all(|answer| matches!(answer, Some(200 | 503))),
        "{answers:?}"
    );
    assert_eq!(coordinator.get("/v1/searches"), Some(200));
    assert_eq!(folder.postmasters().len(), 1);
    coordinator.stop();
}

#[test]
fn coordinators_share_a_cluster_and_the_last_one_stops_it() {
    let folder = Folder::new(0o755);
    let (first, mut second) = (Coordinator::start(&folder), Coordinator::start(&folder));
    assert_eq!(folder.postmasters().len(), 1);
    first.stop();
    // It may have gone with the one that started it; the other one still needs it.
    std::thread::sleep(Duration::from_secs(1));
    second.wait_until_healthy();
    assert_eq!(second.get("/v1/searches"), Some(200));
    assert_eq!(folder.postmasters().len(), 1);
    second.stop();
    assert_eq!(folder.postmasters_left(), Vec::<u32>::new());
}

#[test]
fn a_token_can_be_made_before_the_first_coordinator_runs() {
    let folder = Folder::new(0o755);
    let made = token(&folder.data(), &["create", "--role", "worker", "--expires", "30d"]);
    let secret = String::from_utf8(made.stdout).unwrap();
    assert!(secret.starts_with("temponas_") && secret.trim().len() > 64, "{secret}");
    assert_eq!(
        folder.postmasters_left(),
        Vec::<u32>::new(),
        "the command leaves nothing running"
    );
    let listed = String::from_utf8(token(&folder.data(), &["list"]).stdout).unwrap();
    assert!(
        listed.contains("worker") && listed.contains("valid until") && !listed.contains(secret.trim()),
        "{listed}"
    );
    let id = listed
        .lines()
        .find(|line| line.contains("worker"))
        .unwrap()
        .split_whitespace()
        .next()
        .unwrap()
        .to_owned();
    assert!(
        token(&folder.data(), &["revoke", &id[24..]]).status.success(),
        "by the end of its id"
    );
    let listed = String::from_utf8(token(&folder.data(), &["list"]).stdout).unwrap();
    assert!(listed.contains("revoked"), "{listed}");
}

#[test]
fn a_data_folder_that_the_user_of_postgres_cannot_reach_links_to_one_that_it_can() {
    if !is_root() {
        return;
    }
    let folder = Folder::new(0o700);
    let coordinator = Coordinator::start(&folder);
    let home = fs::read_link(folder.data().join("postgres")).unwrap();
    assert!(home.starts_with("/var/lib/temponas"), "{}", home.display());
    assert_eq!(
        fs::metadata(folder.0.path()).unwrap().permissions().mode() & 0o777,
        0o700,
        "others' folders stay closed"
    );
    coordinator.kill();
    Coordinator::start(&folder).stop();
    assert_eq!(fs::read_link(folder.data().join("postgres")).unwrap(), home);
}

#[test]
fn a_wrong_database_url_is_told_at_once() {
    let folder = Folder::new(0o755);
    let mut command = temponas();
    command
        .arg("serve")
        .arg("--data-dir")
        .arg(folder.data())
        .args(["--listen", "127.0.0.1:0"]);
    let output = command.args(["--database-url", "not a url"]).output().unwrap();
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success() && text.contains("--database-url"), "{text}");
}
