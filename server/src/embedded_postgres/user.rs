//! Who Postgres runs as when this process is root.

use std::{fs, os::unix::fs::MetadataExt, path::Path};

use super::ClusterError;

/// An unprivileged user of this machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct User {
    pub(super) name: String,
    pub(super) uid: u32,
    pub(super) gid: u32,
}

impl User {
    /// The user to become: none unless this process is root.
    pub(super) fn for_postgres() -> Result<Option<Self>, ClusterError> {
        if !rustix::process::geteuid().is_root() {
            return Ok(None);
        }
        let users = fs::read_to_string("/etc/passwd").map_err(ClusterError::files(
            "cannot read the users in",
            Path::new("/etc/passwd"),
        ))?;
        let found = ["postgres", "nobody"]
            .into_iter()
            .find_map(|name| Self::named(&users, name));
        found.map(Some).ok_or(ClusterError::NoUser)
    }

    fn named(users: &str, name: &str) -> Option<Self> {
        users.lines().find_map(|line| {
            let mut fields = line.split(':');
            let found = fields.next().filter(|found| *found == name)?;
            let (uid, gid) = (fields.nth(1)?.parse().ok()?, fields.next()?.parse().ok()?);
            (uid != 0).then(|| Self {
                name: found.to_owned(),
                uid,
                gid,
            })
        })
    }

    /// Whether the user may pass through every folder on the way to `path`, `path` included.
    pub(super) fn reaches(&self, path: &Path) -> bool {
        path.ancestors()
            .filter(|folder| !folder.as_os_str().is_empty())
            .all(|folder| self.enters(folder))
    }

    /// Whether the user may enter (or execute) this one.
    pub(super) fn enters(&self, path: &Path) -> bool {
        let Ok(found) = fs::metadata(path) else { return false };
        let bit = match (found.uid() == self.uid, found.gid() == self.gid) {
            (true, _) => 0o100,
            (false, true) => 0o010,
            (false, false) => 0o001,
        };
        found.mode() & bit != 0
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn a_user_is_read_from_the_list_and_root_under_another_name_is_not_taken() {
        let users =
            "root:x:0:0:root:/root:/bin/sh\npostgres:x:101:104::/var/lib/postgresql:/bin/bash\nnobody:x:0:0::/:\n";
        let postgres = User {
            name: "postgres".to_owned(),
            uid: 101,
            gid: 104,
        };
        assert_eq!(User::named(users, "postgres"), Some(postgres));
        assert_eq!(User::named(users, "nobody"), None);
        assert_eq!(User::named(users, "post"), None);
    }

    #[test]
    fn a_closed_folder_on_the_way_makes_a_place_unreachable() {
        let folder = tempfile::tempdir().unwrap();
        let inner = folder.path().join("inner");
        fs::create_dir(&inner).unwrap();
        let stranger = User {
            name: "stranger".to_owned(),
            uid: 4_000_000,
            gid: 4_000_000,
        };
        fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o700)).unwrap();
        assert!(!stranger.reaches(&inner));
        fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o711)).unwrap();
        fs::set_permissions(&inner, fs::Permissions::from_mode(0o711)).unwrap();
        assert!(stranger.reaches(&inner));
    }
}
