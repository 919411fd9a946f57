//! Who proposes.
