//! CLIP's byte pairs (Radford et al. 2021; spec section 1.2), through the `tokenizers` crate.

use std::collections::HashMap;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::Deserialize;
use tokenizers::models::bpe::BPE;
use tokenizers::normalizers::{Lowercase, NFC, Replace, Sequence};
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::pre_tokenizers::sequence::Sequence as Steps;
use tokenizers::pre_tokenizers::split::{Split, SplitPattern};
use tokenizers::{
    NormalizerWrapper, PreTokenizerWrapper, SplitDelimiterBehavior, normalizers::replace::ReplacePattern,
};

/// What is kept of a caption, piece by piece.
const PIECES: &str = r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+";
const BEGIN: &str = "<|startoftext|>";
const END: &str = "<|endoftext|>";
/// Mark of a word's last symbol.
const WORD_END: &str = "</w>";
/// Merges of the published vocabulary; its file holds more, of which the rest is not used.
const MERGES: usize = 48_894;
/// The published file, compressed, has 1.4 MB; unpacked it is a little over 3 MB.
const LARGEST_FILE: u64 = 64 << 20;

/// Why a tokenizer could not be read.
#[derive(Debug, thiserror::Error)]
pub enum TokenizerError {
    /// A file could not be read.
    #[error("{path}: {source}")]
    File {
        /// The file.
        path: PathBuf,
        /// What the system says.
        source: std::io::Error,
    },
    /// A file is none of the known ones.
    #[error("{path}: {problem}")]
    Content {
        /// The file.
        path: PathBuf,
        /// What was found and what is expected.
        problem: String,
    },
    /// A merge does not follow from those before it.
    #[error("merge {number} is `{merge}`: {problem}")]
    Merge {
        /// From 1.
        number: usize,
        /// The line.
        merge: String,
        /// What is wrong with it.
        problem: String,
    },
    /// Whole words are not in their order.
    #[error("`{word}` follows `{before}` among the words of the tokenizer; allowed: alphabetical order, each once")]
    Order {
        /// A word.
        before: String,
        /// The one behind it.
        word: String,
    },
    /// The library refused.
    #[error("the tokenizer could not be built: {0}")]
    Library(String),
}

/// Byte pairs with the vocabulary that follows from them: the 256 symbols of bytes, the same with a mark of a word's
/// end, the merges joined, a mark of beginning and one of end.
///
/// Captions go through NFC, white space is collapsed, letters are made small; pieces are kept as by `PIECES`, their bytes
/// become symbols and are merged. OpenAI's own code mends broken text before all this (curly quotes, HTML entities);
/// as in the tokenizer that diffusers uses, it is taken as it stands here.
#[derive(Clone)]
pub struct Clip {
    merges: Arc<[(String, String)]>,
    library: Arc<tokenizers::Tokenizer>,
}

impl std::fmt::Debug for Clip {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Clip")
            .field("merges", &self.merges.len())
            .finish_non_exhaustive()
    }
}

impl PartialEq for Clip {
    fn eq(&self, other: &Self) -> bool {
        self.merges == other.merges
    }
}

impl Eq for Clip {}

impl Clip {
    /// Reads `bpe_simple_vocab_16e6.txt.gz`, `tokenizer.json`, or `merges.txt` with `vocab.json` beside it; the latter two
    /// also as the folder that holds them.
    ///
    /// # Errors
    /// Where the files cannot be read, or are not CLIP's: the vocabulary must be the one that follows from the merges.
    pub fn read(path: &Path) -> Result<Self, TokenizerError> {
        if path.is_dir() {
            let whole = path.join("tokenizer.json");
            return Self::read(&if whole.exists() { whole } else { path.join("merges.txt") });
        }
        let content = |problem: String| TokenizerError::Content {
            path: path.to_owned(),
            problem,
        };
        match path.file_name().and_then(|name| name.to_str()).unwrap_or_default() {
            name if name.ends_with(".gz") => {
                let written = unpacked(path)?;
                // The first line is a title.
                Self::from_merges(written.lines().skip(1).take(MERGES)).map_err(|error| content(error.to_string()))
            }
            "merges.txt" | "vocab.json" => {
                let (merges, vocabulary) = (path.with_file_name("merges.txt"), path.with_file_name("vocab.json"));
                let written = text(&merges)?;
                let lines = written
                    .lines()
                    .filter(|line| !line.is_empty() && !line.starts_with("#version"));
                let clip = Self::from_merges(lines).map_err(|error| content(error.to_string()))?;
                let found: HashMap<String, u32> =
                    serde_json::from_str(&text(&vocabulary)?).map_err(|error| content(error.to_string()))?;
                clip.require(&found).map_err(content)?;
                Ok(clip)
            }
            name if name.ends_with(".json") => {
                let file: File = serde_json::from_str(&text(path)?).map_err(|error| content(error.to_string()))?;
                let (kind, end) = (file.model.kind, file.model.end_of_word_suffix);
                if kind != "BPE" || end.as_deref() != Some(WORD_END) {
                    return Err(content(format!(
                        "its model is {kind} with end of word {end:?}; expected is BPE with `{WORD_END}`"
                    )));
                }
                let merges = file.model.merges.iter().map(Pair::line);
                let merges: Vec<String> = merges.collect();
                let clip = Self::from_merges(merges.iter().map(String::as_str));
                let clip = clip.map_err(|error| content(error.to_string()))?;
                clip.require(&file.model.vocab).map_err(content)?;
                Ok(clip)
            }
            _ => Err(content(
                "no tokenizer is known under this name; expected is bpe_simple_vocab_16e6.txt.gz, tokenizer.json, \
                 merges.txt beside vocab.json, or their folder"
                    .to_owned(),
            )),
        }
    }

    /// From merges in order of rank, `a b` each.
    ///
    /// # Errors
    /// Where one is no pair of known symbols or makes a symbol that is there already.
    pub fn from_merges<'a>(merges: impl IntoIterator<Item = &'a str>) -> Result<Self, TokenizerError> {
        let mut vocabulary = Vocabulary::of_bytes();
        let mut pairs = Vec::new();
        for (i, line) in merges.into_iter().enumerate() {
            let refused = |problem: String| TokenizerError::Merge {
                number: i + 1,
                merge: line.to_owned(),
                problem,
            };
            let pair = line.split_once(' ').filter(|(_, b)| !b.contains(' '));
            let (a, b) = pair.ok_or_else(|| refused("expected are two symbols with a space between".to_owned()))?;
            if let Some(stranger) = [a, b].into_iter().find(|symbol| !vocabulary.0.contains_key(*symbol)) {
                return Err(refused(format!("`{stranger}` is made by no merge before it")));
            }
            let made = format!("{a}{b}");
            if [BEGIN, END].contains(&made.as_str()) || !vocabulary.add(made) {
                return Err(refused("it makes a symbol that is there already".to_owned()));
            }
            pairs.push((a.to_owned(), b.to_owned()));
        }
        vocabulary.add(BEGIN.to_owned());
        vocabulary.add(END.to_owned());
        let library = library(vocabulary, pairs.clone()).map_err(|error| TokenizerError::Library(error.to_string()))?;
        Ok(Self {
            merges: pairs.into(),
            library: Arc::new(library),
        })
    }

    /// The merges, one a line.
    pub(super) fn merges(&self) -> String {
        let lines: Vec<String> = self.merges.iter().map(|(a, b)| format!("{a} {b}")).collect();
        lines.join("\n")
    }

    pub(super) fn size(&self) -> i64 {
        self.end() + 1
    }

    pub(super) fn begin(&self) -> i64 {
        2 * SYMBOLS + self.merges.len() as i64
    }

    pub(super) fn end(&self) -> i64 {
        self.begin() + 1
    }

    /// Without marks.
    pub(super) fn encode(&self, caption: &str) -> Vec<i64> {
        let encoded = self.library.encode_fast(caption, false);
        // Merges add to the symbols of bytes and take none away.
        let encoded = encoded.expect("every byte is a symbol of the vocabulary");
        encoded.get_ids().iter().map(|&id| id.into()).collect()
    }

    /// A vocabulary that a file gives beside the merges must be the one that follows from them.
    fn require(&self, found: &HashMap<String, u32>) -> Result<(), String> {
        let expected = self.library.get_vocab(false);
        if found.len() != expected.len() {
            let (found, expected) = (found.len(), expected.len());
            return Err(format!(
                "the vocabulary has {found} tokens, from the merges follow {expected}"
            ));
        }
        let mut expected: Vec<(&String, &u32)> = expected.iter().collect();
        expected.sort_by_key(|(_, id)| **id);
        match expected.into_iter().find(|(token, id)| found.get(*token) != Some(*id)) {
            None => Ok(()),
            Some((token, id)) => {
                let found = found.get(token).map_or_else(|| "missing".to_owned(), u32::to_string);
                Err(format!(
                    "`{token}` is {found} in the vocabulary, from the merges follows {id}"
                ))
            }
        }
    }
}

/// Symbols of single bytes.
const SYMBOLS: i64 = 256;

/// Tokens with their numbers.
struct Vocabulary(HashMap<String, u32>);

impl Vocabulary {
    /// Printable bytes stand for themselves and come first, the others are moved behind U+0100, as in GPT-2.
    fn of_bytes() -> Self {
        let printable = |byte: &u32| matches!(byte, 0x21..=0x7e | 0xa1..=0xac | 0xae..=0xff);
        let themselves = (0..256).filter(printable);
        let moved = (0..256)
            .filter(|byte| !printable(byte))
            .enumerate()
            .map(|(i, _)| 256 + i as u32);
        let symbols: Vec<String> = themselves
            .chain(moved)
            .filter_map(char::from_u32)
            .map(String::from)
            .collect();
        let mut vocabulary = Self(HashMap::new());
        for symbol in &symbols {
            vocabulary.add(symbol.clone());
        }
        for symbol in &symbols {
            vocabulary.add(format!("{symbol}{WORD_END}"));
        }
        vocabulary
    }

    /// Gives a token the next number; whether it was new.
    fn add(&mut self, token: String) -> bool {
        let next = self.0.len() as u32;
        self.0.insert(token, next).is_none()
    }
}

fn library(vocabulary: Vocabulary, merges: Vec<(String, String)>) -> tokenizers::Result<tokenizers::Tokenizer> {
    let model = BPE::builder()
        .vocab_and_merges(
            vocabulary.0.into_iter().collect::<tokenizers::models::bpe::Vocab>(),
            merges,
        )
        .unk_token(END.to_owned())
        .end_of_word_suffix(WORD_END.to_owned())
        .build()?;
    let mut tokenizer = tokenizers::Tokenizer::new(model);
    let spaces = Replace::new(ReplacePattern::Regex(r"\s+".to_owned()), " ")?;
    tokenizer.with_normalizer(Some(Sequence::new(vec![
        NormalizerWrapper::NFC(NFC),
        spaces.into(),
        Lowercase.into(),
    ])))?;
    let pieces = Split::new(
        SplitPattern::Regex(PIECES.to_owned()),
        SplitDelimiterBehavior::Removed,
        true,
    )?;
    tokenizer.with_pre_tokenizer(Some(Steps::new(vec![
        PreTokenizerWrapper::Split(pieces),
        PreTokenizerWrapper::ByteLevel(ByteLevel::new(false, false, false)),
    ])));
    Ok(tokenizer)
}

/// What is read of a `tokenizer.json`.
#[derive(Deserialize)]
struct File {
    model: Model,
}

#[derive(Deserialize)]
struct Model {
    #[serde(rename = "type", default)]
    kind: String,
    end_of_word_suffix: Option<String>,
    vocab: HashMap<String, u32>,
    merges: Vec<Pair>,
}

/// Older and newer files write a merge differently.
#[derive(Deserialize)]
#[serde(untagged)]
enum Pair {
    Line(String),
    Two([String; 2]),
}

impl Pair {
    fn line(&self) -> String {
        match self {
            Self::Line(line) => line.clone(),
            Self::Two([a, b]) => format!("{a} {b}"),
        }
    }
}

fn text(path: &Path) -> Result<String, TokenizerError> {
    std::fs::read_to_string(path).map_err(|source| TokenizerError::File {
        path: path.to_owned(),
        source,
    })
}

fn unpacked(path: &Path) -> Result<String, TokenizerError> {
    let failed = |source| TokenizerError::File {
        path: path.to_owned(),
        source,
    };
    let file = std::fs::File::open(path).map_err(failed)?;
    let mut text = String::new();
    let packed = flate2::read::GzDecoder::new(file);
    packed.take(LARGEST_FILE).read_to_string(&mut text).map_err(failed)?;
    Ok(text)
}
