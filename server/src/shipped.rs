//! Space files that ship.

macro_rules! shipped {
    ($($name:literal),+ $(,)?) => {
        [$(($name, include_str!(concat!("../../search-spaces/spaces/", $name, ".toml")))),+]
    };
}

/// Name and text of every space file that ships, by name.
pub const SPACES: [(&str, &str); 5] = shipped![
    "emoji-small",
    "nas-bench-201",
    "nas-bench-macro",
    "shapes-tiny",
    "snapgen-v",
];

/// Text of the shipped space of that name.
#[must_use]
pub fn space(name: &str) -> Option<&'static str> {
    SPACES
        .iter()
        .find(|(shipped, _)| *shipped == name)
        .map(|(_, text)| *text)
}

#[cfg(test)]
mod tests {
    use search_spaces::Space;

    use super::*;

    #[test]
    fn every_shipped_space_is_right_and_bears_its_files_name() {
        assert!(SPACES.is_sorted());
        for (name, text) in SPACES {
            assert_eq!(Space::parse(text).unwrap().name, name);
        }
    }
}
