//! What the package found, read strictly.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use search_spaces::vbench::Dimension;
use serde_json::Value;

use super::super::Place;

/// One dimension's score with those of its videos.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Found {
    /// As the package averages, a fraction.
    pub score: f64,
    /// By prompt and number, fractions.
    pub videos: Vec<(Place, f64)>,
}

/// Reads `{dimension: [score, [{video_path, video_results}, …]]}`. Every expected video must be there, except that
/// `color` leaves out those in which the object is not seen.
///
/// # Errors
/// What was found and what is expected.
pub(super) fn parse(text: &[u8], dimension: Dimension, expected: &BTreeMap<String, Place>) -> Result<Found, String> {
    let value: Value = serde_json::from_slice(text).map_err(|error| format!("is no JSON: {error}"))?;
    let of = value.as_object().filter(|object| object.len() == 1);
    let pair = of.and_then(|object| object.get(dimension.name())?.as_array());
    let Some([score, videos]) = pair.map(Vec::as_slice) else {
        return Err(format!(
            "does not hold `{dimension}` alone with a score and a list of videos"
        ));
    };
    let score = number(score).ok_or_else(|| format!("has the score {score}, which is no number"))?;
    let videos = videos.as_array().ok_or("has no list of videos")?;
    let videos: Vec<(Place, f64)> = videos
        .iter()
        .map(|video| one(video, dimension, expected))
        .collect::<Result<_, String>>()?;
    let found: BTreeSet<(usize, usize)> = videos.iter().map(|(place, _)| (place.prompt, place.video)).collect();
    if found.len() < videos.len() {
        return Err("scores a video twice".to_owned());
    }
    let missing: Vec<&str> = expected
        .iter()
        .filter(|(_, place)| !found.contains(&(place.prompt, place.video)))
        .map(|(name, _)| name.as_str())
        .collect();
    if !missing.is_empty() && dimension != Dimension::Color {
        return Err(format!("leaves out {} videos: {}", missing.len(), missing.join(", ")));
    }
    Ok(Found { score, videos })
}

fn one(video: &Value, dimension: Dimension, expected: &BTreeMap<String, Place>) -> Result<(Place, f64), String> {
    let path = video.get("video_path").and_then(Value::as_str);
    let name = path.and_then(|path| Path::new(path).file_name()?.to_str());
    let place = name.and_then(|name| expected.get(name));
    let place = place.ok_or_else(|| format!("scores {}, which is none of its videos", path.unwrap_or("no file")))?;
    let score = video.get("video_results").and_then(number);
    let score = score.ok_or_else(|| format!("gives no number for {}", path.unwrap_or_default()))?;
    // The package scales this one's average to a fraction, and not the videos'.
    let scale = if dimension == Dimension::ImagingQuality {
        0.01
    } else {
        1.0
    };
    Ok((*place, scale * score))
}

/// A finite number, or whether something holds.
fn number(value: &Value) -> Option<f64> {
    let number = value.as_f64().or_else(|| Some(f64::from(u8::from(value.as_bool()?))));
    number.filter(|number| number.is_finite())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn expected() -> BTreeMap<String, Place> {
        [("a-0.mp4", 0, 0), ("a-1.mp4", 0, 1)]
            .map(|(name, prompt, video)| (name.to_owned(), Place { prompt, video }))
            .into()
    }

    #[test]
    fn scores_are_read_with_those_of_the_videos() {
        let text = br#"{"dynamic_degree": [0.5, [
            {"video_path": "/v/a-1.mp4", "video_results": true}, {"video_path": "/v/a-0.mp4", "video_results": false}]]}"#;
        let found = parse(text, Dimension::DynamicDegree, &expected()).unwrap();
        assert_eq!(found.score, 0.5);
        assert_eq!(found.videos[0], (Place { prompt: 0, video: 1 }, 1.0));
        assert_eq!(found.videos[1].1, 0.0);

        let text = br#"{"imaging_quality": [0.5, [
            {"video_path": "a-0.mp4", "video_results": 40.0}, {"video_path": "a-1.mp4", "video_results": 60}]]}"#;
        let found = parse(text, Dimension::ImagingQuality, &expected()).unwrap();
        assert!((found.videos[0].1 - 0.4).abs() < 1e-12 && (found.videos[1].1 - 0.6).abs() < 1e-12);
    }

    #[test]
    fn anything_else_is_refused_in_words() {
        let refuse = |text: &str, dimension| parse(text.as_bytes(), dimension, &expected()).unwrap_err();
        let flickering = Dimension::TemporalFlickering;
        let half = r#"{"video_path": "/v/a-0.mp4", "video_results": 0.5}"#;
        let said = refuse(&format!(r#"{{"temporal_flickering": [0.5, [{half}]]}}"#), flickering);
        assert_eq!(said, "leaves out 1 videos: a-1.mp4");
        let said = refuse(
            &format!(r#"{{"temporal_flickering": [0.5, [{half}, {half}]]}}"#),
            flickering,
        );
        assert_eq!(said, "scores a video twice");
        assert!(refuse(r#"{"temporal_flickering": [NaN, []]}"#, flickering).starts_with("is no JSON"));
        assert!(refuse(r#"{"temporal_flickering": ["0.5", []]}"#, flickering).contains("no number"));
        assert!(refuse(r#"{"color": [0.5, []]}"#, flickering).contains("`temporal_flickering` alone"));
        let other = r#"{"temporal_flickering": [0.5, [{"video_path": "b-0.mp4", "video_results": 0.5}]]}"#;
        assert_eq!(refuse(other, flickering), "scores b-0.mp4, which is none of its videos");
        assert!(parse(br#"{"color": [0.5, []]}"#, Dimension::Color, &expected()).is_ok());
    }
}
