//! The `Range` header (RFC 9110, section 14): one range of bytes.

use std::ops::Range;

/// A range that begins after the last byte.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BadRange;

/// The bytes that a `Range` header asks for of `length` bytes; `None` where all of them are to be sent:
/// a malformed header, another unit or several ranges may be ignored, and are.
///
/// # Errors
/// When the range begins after the last byte.
pub fn requested_range(header: &str, length: u64) -> Result<Option<Range<u64>>, BadRange> {
    let Some(range) = header.strip_prefix("bytes=") else {
        return Ok(None);
    };
    let Some((first, last)) = range.trim().split_once('-') else {
        return Ok(None);
    };
    let range = match (first.parse::<u64>(), last.parse::<u64>()) {
        (Ok(first), Ok(last)) if first <= last => first..length.min(last.saturating_add(1)),
        (Ok(first), Err(_)) if last.is_empty() => first..length,
        (Err(_), Ok(last)) if first.is_empty() => length.saturating_sub(last)..length,
        _ => return Ok(None),
    };
    if range.start < range.end {
        Ok(Some(range))
    } else {
        Err(BadRange)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn ranges_are_read_as_the_standard_says() {
        assert_eq!(requested_range("bytes=0-4", 10), Ok(Some(0..5)));
        assert_eq!(requested_range("bytes=4-", 10), Ok(Some(4..10)));
        assert_eq!(requested_range("bytes=-4", 10), Ok(Some(6..10)));
        assert_eq!(requested_range("bytes=-40", 10), Ok(Some(0..10)));
        assert_eq!(requested_range("bytes=4-40", 10), Ok(Some(4..10)));
        assert_eq!(requested_range("bytes=10-", 10), Err(BadRange));
        assert_eq!(requested_range("bytes=-0", 10), Err(BadRange));
        for ignored in [
            "lines=1-2",
            "bytes=4-2",
            "bytes=1-2,4-5",
            "bytes=",
            "bytes=-",
            "bytes=a-b",
        ] {
            assert_eq!(requested_range(ignored, 10), Ok(None), "{ignored}");
        }
    }

    proptest! {
        #[test]
        fn any_header_yields_bytes_that_are_there(header in "bytes=[0-9]{0,20}-[0-9]{0,20}", length in 0u64..1000) {
            if let Ok(Some(range)) = requested_range(&header, length) {
                prop_assert!(range.start < range.end && range.end <= length);
            }
        }
    }
}
