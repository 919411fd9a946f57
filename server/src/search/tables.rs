//! Uploaded tables, plain or packed.

use std::io::Read;

use search_spaces::{Space, Table};

use super::SearchError;

/// The largest table that is read, unpacked, in bytes: a small file can be packed from a huge one.
const LARGEST: u64 = 256 << 20;

/// Reads CSV or CSV.gz as a table of the space.
///
/// # Errors
/// [`SearchError::Invalid`] on `table`, with all that is wrong.
pub(super) fn read(bytes: &[u8], space: &Space) -> Result<Table, SearchError> {
    let refuse = |message: String| SearchError::Invalid {
        field: "table".into(),
        message,
    };
    let mut csv = Vec::new();
    let read = if bytes.starts_with(&[0x1f, 0x8b]) {
        flate2::read::MultiGzDecoder::new(bytes)
            .take(LARGEST + 1)
            .read_to_end(&mut csv)
    } else {
        bytes.take(LARGEST + 1).read_to_end(&mut csv)
    };
    match read {
        Err(error) => Err(refuse(format!("it cannot be unpacked: {error}"))),
        Ok(length) if length as u64 > LARGEST => {
            Err(refuse(format!("it is larger than {} MiB unpacked", LARGEST >> 20)))
        }
        Ok(_) => Table::parse(space, &csv).map_err(|error| refuse(error.to_string())),
    }
}
