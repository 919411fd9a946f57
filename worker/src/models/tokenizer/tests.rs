use proptest::prelude::*;

use super::*;
use crate::data::default_cache;

#[test]
fn words_become_marked_and_filled_tokens() {
    let tokenizer = Tokenizer::from_captions(["a red circle", "a blue star"]);
    let (begin, end, unknown) = (0, 1, 2);
    assert_eq!((tokenizer.size(), tokenizer.end()), (8, end));
    // Words in alphabetical order: a 3, blue 4, circle 5, red 6, star 7.
    assert_eq!(tokenizer.encode("A red, star!", 6), [begin, 3, 6, 7, end, end]);
    assert_eq!(tokenizer.encode("a green star", 6), [begin, 3, unknown, 7, end, end]);
    assert_eq!(tokenizer.encode("a red blue star circle", 4), [begin, 3, 6, end]);
    assert_eq!(tokenizer.encode("", 3), [begin, end, end]);
}

/// Byte symbols 0 to 255 (`!` is the first, so `a` is 64), the same at a word's end, then these merges from 512.
const MERGES: [&str; 4] = ["c a", "ca t</w>", "o n", "' s</w>"];

fn small() -> Tokenizer {
    Tokenizer::Clip(Clip::from_merges(MERGES).unwrap())
}

#[test]
fn byte_pairs_are_merged_by_rank_within_words() {
    let tokenizer = small();
    let (begin, end) = (516, 517);
    assert_eq!((tokenizer.size(), tokenizer.end()), (518, end));
    let symbol = |c: char| i64::from(u32::from(c)) - i64::from(u32::from('!'));
    let last = |c: char| symbol(c) + 256;
    assert_eq!(tokenizer.encode("CAT", 4), [begin, 513, end, end]);
    assert_eq!(
        tokenizer.encode("cat's  ca", 7),
        [begin, 513, 515, symbol('c'), last('a'), end, end]
    );
    assert_eq!(tokenizer.encode("on", 5), [begin, symbol('o'), last('n'), end, end]);
    assert_eq!(tokenizer.encode("one", 5), [begin, 514, last('e'), end, end]);
    assert_eq!(tokenizer.encode("cat cat cat", 4), [begin, 513, 513, end]);
    // é is the bytes C3 A9, composed or not; the printable Latin bytes follow on ~, which is number 93.
    let e_acute = [begin, 94 + 0xc3 - 0xa1 - 1, 94 + 0xa9 - 0xa1 + 256, end];
    assert_eq!(tokenizer.encode("\u{e9}", 4), e_acute);
    assert_eq!(tokenizer.encode("e\u{301}", 4), e_acute);
}

#[test]
fn a_tokenizer_goes_through_a_manifest() {
    let words = Tokenizer::from_captions(["a red circle"]);
    assert_eq!(serde_json::to_string(&words).unwrap(), r#"["a","circle","red"]"#);
    for tokenizer in [words, small()] {
        let text = serde_json::to_string(&tokenizer).unwrap();
        let read: Tokenizer = serde_json::from_str(&text).unwrap();
        assert_eq!(read, tokenizer);
        assert_eq!(read.encode("a red cat", 8), tokenizer.encode("a red cat", 8));
    }
    let broken = serde_json::from_str::<Tokenizer>(r#"{"clip_merges": "c a\nx"}"#)
        .unwrap_err()
        .to_string();
    assert!(broken.contains("merge 2 is `x`"), "{broken}");
    for words in [r#"["a","red","circle"]"#, r#"["circle","circle"]"#] {
        let error = serde_json::from_str::<Tokenizer>(words).unwrap_err().to_string();
        assert!(error.contains("`circle` follows `"), "{error}");
    }
}

#[test]
fn merges_that_do_not_follow_are_refused() {
    for (merges, problem) in [
        (vec!["c a", "cat s"], "`cat` is made by no merge before it"),
        (vec!["c a", "c a"], "there already"),
        (vec!["c a t"], "two symbols"),
        (vec![""], "two symbols"),
    ] {
        let found = Clip::from_merges(merges).unwrap_err().to_string();
        assert!(found.contains(problem), "{found}");
    }
}

/// A mark that merges make would have a number of its own, which captions could hold.
#[test]
fn merges_that_make_a_mark_are_refused() {
    for mark in ["<|startoftext|>", "<|endoftext|>"] {
        let merges: Vec<String> = (1..mark.len())
            .map(|i| format!("{} {}", &mark[..i], &mark[i..=i]))
            .collect();
        let last = merges.len();
        let found = Clip::from_merges(merges.iter().map(String::as_str))
            .unwrap_err()
            .to_string();
        assert!(
            found.contains(&format!("merge {last} is")) && found.contains("there already"),
            "{found}"
        );
    }
}

/// The three forms in which vocabularies come.
fn write_forms(folder: &std::path::Path, vocabulary: &serde_json::Value) {
    use std::io::Write;
    let write = |name: &str, text: String| std::fs::write(folder.join(name), text).unwrap();
    write("merges.txt", format!("#version: 0.2\n{}\n", MERGES.join("\n")));
    write("vocab.json", vocabulary.to_string());
    let pairs: Vec<Vec<&str>> = MERGES.iter().map(|merge| merge.split(' ').collect()).collect();
    for (name, merges) in [
        ("tokenizer.json", serde_json::json!(MERGES)),
        ("newer.json", serde_json::json!(pairs)),
    ] {
        let model = serde_json::json!({
            "type": "BPE", "end_of_word_suffix": "</w>", "vocab": vocabulary, "merges": merges
        });
        write(name, serde_json::json!({"version": "1.0", "model": model}).to_string());
    }
    let file = std::fs::File::create(folder.join("bpe.txt.gz")).unwrap();
    let mut packed = flate2::write::GzEncoder::new(file, flate2::Compression::fast());
    write!(packed, "\"a title\"\n{}\n", MERGES.join("\n")).unwrap();
    packed.finish().unwrap();
}

/// The vocabulary as the rule gives it, written out here once more.
fn vocabulary() -> serde_json::Map<String, serde_json::Value> {
    let printable = |b: u32| (33..127).contains(&b) || (161..173).contains(&b) || (174..256).contains(&b);
    let mut symbols: Vec<char> = (0..256)
        .filter(|b| printable(*b))
        .map(|b| char::from_u32(b).unwrap())
        .collect();
    symbols.extend((256..256 + 68).map(|b| char::from_u32(b).unwrap()));
    let mut tokens: Vec<String> = symbols.iter().map(char::to_string).collect();
    tokens.extend(symbols.iter().map(|symbol| format!("{symbol}</w>")));
    tokens.extend(["ca", "cat</w>", "on", "'s</w>", "<|startoftext|>", "<|endoftext|>"].map(str::to_owned));
    tokens
        .into_iter()
        .enumerate()
        .map(|(i, token)| (token, i.into()))
        .collect()
}

#[test]
fn the_forms_in_which_vocabularies_come_give_the_same_tokenizer() {
    let folder = tempfile::tempdir().unwrap();
    write_forms(folder.path(), &vocabulary().into());
    for name in [
        "merges.txt",
        "vocab.json",
        "tokenizer.json",
        "newer.json",
        "bpe.txt.gz",
        "",
    ] {
        let read = Clip::read(&folder.path().join(name)).unwrap();
        assert_eq!(Tokenizer::Clip(read), small(), "{name}");
    }
}

#[test]
fn another_vocabulary_is_refused_with_the_token_that_differs() {
    let folder = tempfile::tempdir().unwrap();
    let mut other = vocabulary();
    let (a, b) = (other["on"].clone(), other["ca"].clone());
    other.insert("on".to_owned(), b);
    other.insert("ca".to_owned(), a);
    write_forms(folder.path(), &other.clone().into());
    for name in ["merges.txt", "tokenizer.json"] {
        let error = Clip::read(&folder.path().join(name)).unwrap_err().to_string();
        assert!(
            error.contains("`ca` is 514 in the vocabulary, from the merges follows 512"),
            "{error}"
        );
    }
    other.remove("on");
    write_forms(folder.path(), &other.into());
    let error = Clip::read(folder.path()).unwrap_err().to_string();
    assert!(error.contains("517 tokens, from the merges follow 518"), "{error}");
    for name in ["absent.json", "words.txt"] {
        let error = Clip::read(&folder.path().join(name)).unwrap_err().to_string();
        assert!(error.contains(name), "{error}");
    }
    std::fs::write(folder.path().join("broken.txt.gz"), b"no gzip").unwrap();
    assert!(matches!(
        Clip::read(&folder.path().join("broken.txt.gz")),
        Err(TokenizerError::File { .. })
    ));
}

#[derive(Deserialize)]
struct Reference {
    cases: Vec<Case>,
}

#[derive(Deserialize)]
struct Case {
    text: String,
    tokens: Vec<i64>,
}

/// Token numbers by OpenAI's own code; `reference.py` says how they were made.
#[test]
fn the_published_vocabulary_gives_the_tokens_of_openais_own_code() {
    let path = default_cache().join("clip-vocabulary-1/bpe_simple_vocab_16e6.txt.gz");
    let clip = Clip::read(&path).unwrap_or_else(|error| panic!("{error}; `make setup` lays the vocabulary out"));
    let tokenizer = Tokenizer::Clip(clip);
    assert_eq!(tokenizer.size(), crate::models::published::CLIP_VOCABULARY);
    let reference: Reference = serde_json::from_str(include_str!("reference.json")).unwrap();
    assert!(reference.cases.len() > 20);
    for Case { text, mut tokens } in reference.cases {
        tokens.resize(77, 49_407);
        assert_eq!(tokenizer.encode(&text, 77), tokens, "{text:?}");
    }
}

proptest! {
    /// Whatever merges are taken, each caption has tokens.
    #[test]
    fn no_merges_keep_a_caption_from_its_tokens(
        pairs in prop::collection::vec(any::<(prop::sample::Index, prop::sample::Index)>(), 0..60),
        caption in "[abé<|>🙂' ]{0,20}",
    ) {
        let mut symbols: Vec<String> = ["a", "b", "Ã", "<", "|", "a</w>", "b</w>", "©</w>"].map(str::to_owned).into();
        let mut merges = Vec::new();
        for (a, b) in pairs {
            let (a, b) = (a.get(&symbols), b.get(&symbols));
            let (merge, made) = (format!("{a} {b}"), format!("{a}{b}"));
            if !symbols.contains(&made) {
                symbols.push(made);
                merges.push(merge);
            }
        }
        let tokenizer = Tokenizer::Clip(Clip::from_merges(merges.iter().map(String::as_str)).unwrap());
        let tokens = tokenizer.encode(&caption, 64);
        prop_assert!(tokens.iter().all(|token| (0..tokenizer.size()).contains(token)), "{:?}", tokens);
    }

    #[test]
    fn any_caption_is_as_many_tokens_as_asked_for(caption in "\\PC{0,60}|[\\x00-\\x7f]{0,60}", length in 2_i64..20) {
        for tokenizer in [small(), Tokenizer::from_captions(["a red circle"])] {
            let tokens = tokenizer.encode(&caption, length);
            prop_assert_eq!(tokens.len() as i64, length);
            prop_assert!(tokens.iter().all(|token| (0..tokenizer.size()).contains(token)));
            prop_assert_eq!(tokens[length as usize - 1], tokenizer.end());
        }
    }
}
