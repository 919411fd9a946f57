//! Starting the postmaster so that it ends with this process.

use std::{
    io,
    os::unix::process::CommandExt,
    path::Path,
    process::{Child, Command, Stdio},
    sync::{
        Mutex, PoisonError,
        mpsc::{Sender, channel},
    },
    thread,
};

use super::{ClusterError, Place, Programs, User, programs::become_user};

/// The hidden command of the `temponas` program that [`run_until_parent_dies`] serves.
pub const SHIM: &str = "run-until-parent-dies";

/// Starts processes from a thread that lives as long as this process: Linux ends a child that asked for
/// it when the *thread* that made it is gone, and those of an async runtime come and go.
#[derive(Debug)]
pub(super) struct Launcher {
    requests: Sender<Request>,
    /// Whether this program knows the hidden command. Asked at the start: once an upgrade has replaced its
    /// file, the name that the system tells is another.
    has_shim: bool,
    /// Postmasters not known to have ended. The one before the last may still be dying when another is started.
    children: Mutex<Vec<Child>>,
}

struct Request {
    command: Command,
    reply: Sender<io::Result<Child>>,
}

impl Launcher {
    pub(super) fn start() -> Self {
        let (requests, incoming) = channel::<Request>();
        thread::spawn(move || {
            for mut request in incoming {
                // A requester that has gone away takes its child with it.
                let _ = request.reply.send(request.command.spawn());
            }
            // The thread outlives its launcher, or the children would end with it.
            loop {
                thread::park();
            }
        });
        Self {
            requests,
            has_shim: is_temponas(),
            children: Mutex::new(Vec::new()),
        }
    }

    /// Starts a postmaster, without waiting for it to be ready.
    pub(super) fn postgres(&self, programs: &Programs, place: &Place, user: Option<&User>) -> Result<(), ClusterError> {
        let shimmed = self.spawn(postgres_command(programs, place, user, self.has_shim)?);
        let child = match shimmed {
            Ok(child) => child,
            // This program's own file cannot be executed by the user; Postgres' can.
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
                let direct = self.spawn(postgres_command(programs, place, user, false)?);
                direct.map_err(ClusterError::files("cannot start", &programs.postgres()))?
            }
            Err(error) => return Err(ClusterError::files("cannot start", &programs.postgres())(error)),
        };
        self.children.lock().unwrap_or_else(PoisonError::into_inner).push(child);
        Ok(())
    }

    /// Takes note of every postmaster that ended: until then the system keeps its number alive, and its successor
    /// takes it for a living one.
    pub(super) fn reap(&self) {
        let mut children = self.children.lock().unwrap_or_else(PoisonError::into_inner);
        children.retain_mut(|child| matches!(child.try_wait(), Ok(None)));
    }

    fn spawn(&self, command: Command) -> io::Result<Child> {
        let (reply, answer) = channel();
        let gone = |_| io::Error::other("the thread that starts processes is gone");
        self.requests.send(Request { command, reply }).map_err(|_| gone(()))?;
        answer.recv().map_err(|_| gone(()))?
    }
}

fn postgres_command(
    programs: &Programs,
    place: &Place,
    user: Option<&User>,
    shimmed: bool,
) -> Result<Command, ClusterError> {
    let log = std::fs::File::options().create(true).append(true).open(place.log());
    let log = log.map_err(ClusterError::files("cannot write the log", &place.log()))?;
    let errors = log
        .try_clone()
        .map_err(ClusterError::files("cannot write the log", &place.log()))?;
    let mut command = if shimmed {
        // By this name the file is found even where the user cannot reach its folder.
        let mut command = Command::new("/proc/self/exe");
        command
            .arg(SHIM)
            .arg(std::process::id().to_string())
            .arg(programs.postgres());
        command
    } else {
        Command::new(programs.postgres())
    };
    command.arg("-D").arg(place.cluster()).arg("-k").arg(place.socket());
    for setting in [
        "listen_addresses=",
        "port=5432",
        "unix_socket_permissions=0700",
        "max_connections=200",
        "jit=off",
        "logging_collector=off",
        "log_destination=stderr",
        "cluster_name=temponas",
    ] {
        command.args(["-c", setting]);
    }
    become_user(&mut command, user, place.cluster());
    // A group of its own: Ctrl-C is for the coordinator, which then stops Postgres itself.
    command.process_group(0).stdin(Stdio::null()).stdout(log).stderr(errors);
    Ok(command)
}

/// Whether this process is the `temponas` program, which knows the hidden command; a test's is not.
fn is_temponas() -> bool {
    cfg!(target_os = "linux")
        && std::env::current_exe().is_ok_and(|path| path.file_name().is_some_and(|name| name == "temponas"))
}

/// Becomes `program`, which the system will interrupt when process `parent` dies.
///
/// # Errors
/// When the parent is gone already, or the program cannot be executed; otherwise it does not return.
pub fn run_until_parent_dies(parent: u32, program: &Path, arguments: &[std::ffi::OsString]) -> io::Result<()> {
    #[cfg(target_os = "linux")]
    rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::INT))?;
    if std::os::unix::process::parent_id() != parent {
        return Err(io::Error::other("the process that asked for it is gone"));
    }
    Err(Command::new(program).args(arguments).exec())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_child_that_died_before_its_successor_was_started_is_reaped_too() {
        let launcher = Launcher::start();
        let children: Vec<Child> = (0..2).map(|_| launcher.spawn(Command::new("true")).unwrap()).collect();
        let pids: Vec<u32> = children.iter().map(Child::id).collect();
        *launcher.children.lock().unwrap() = children;
        let deadline = std::time::Instant::now() + std::time::Duration::from_secs(20);
        while !launcher.children.lock().unwrap().is_empty() && std::time::Instant::now() < deadline {
            launcher.reap();
            thread::sleep(std::time::Duration::from_millis(10));
        }
        for pid in pids {
            assert!(!Path::new(&format!("/proc/{pid}")).exists(), "{pid} is left");
        }
    }
}
