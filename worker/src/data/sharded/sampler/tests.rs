use proptest::prelude::*;

use super::super::tests::{encoded, folder, settings};
use super::*;
use crate::data::Split;

fn ranges(counts: &[usize]) -> Vec<std::ops::Range<usize>> {
    let mut first = 0;
    counts
        .iter()
        .map(|count| {
            first += count;
            first - count..first
        })
        .collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(150))]

    /// In as many cycles as a bucket needs for whole passes, each of its clips comes equally often, and every batch is
    /// of one bucket.
    #[test]
    fn every_clip_comes_once_in_each_pass(
        counts in prop::collection::vec(0..40usize, 1..5),
        batch in 1..7u64,
        seed in any::<u64>(),
    ) {
        prop_assume!(counts.iter().sum::<usize>() > 0);
        let ranges = ranges(&counts);
        let sampler = Sampler::new(&ranges, &vec![1.0; counts.len()], batch, seed).unwrap();
        let mut seen: Vec<Vec<(u64, usize)>> = vec![Vec::new(); counts.len()];
        let cycles = 30;
        for step in 0..cycles * sampler.steps_of_cycle() {
            let draw = sampler.draw(step);
            prop_assert_eq!(draw.clips.len() as u64, batch);
            prop_assert!(draw.clips.iter().all(|clip| ranges[draw.bucket].contains(clip)));
            seen[draw.bucket].extend(draw.clips.iter().map(|&clip| (step, clip)));
        }
        for (range, seen) in ranges.iter().zip(&seen) {
            let mut times = vec![0usize; range.len()];
            for (_, clip) in seen {
                times[clip - range.start] += 1;
            }
            let (least, most) = (times.iter().min(), times.iter().max());
            prop_assert!(most.copied().unwrap_or(0) <= least.copied().unwrap_or(0) + 1, "{:?}", times);
        }
    }

    /// Where batches are filled by a bucket's clips, a cycle is one epoch: each clip exactly once.
    #[test]
    fn a_cycle_is_an_epoch(batches in prop::collection::vec(1..12usize, 1..4), batch in 1..5usize, seed in any::<u64>(), cycle in 0..50u64) {
        let counts: Vec<usize> = batches.iter().map(|count| count * batch).collect();
        let sampler = Sampler::new(&ranges(&counts), &vec![1.0; counts.len()], batch as u64, seed).unwrap();
        let steps = sampler.steps_of_cycle();
        prop_assert_eq!(steps as usize, batches.iter().sum::<usize>());
        let mut clips: Vec<usize> = (cycle * steps..(cycle + 1) * steps).flat_map(|step| sampler.draw(step).clips).collect();
        clips.sort_unstable();
        prop_assert_eq!(clips, (0..counts.iter().sum()).collect::<Vec<_>>());
    }

    /// A sampler made anew at any step goes on as the first would have; ranks take the batch apart.
    #[test]
    fn it_goes_on_anywhere_and_ranks_take_the_batch_apart(
        counts in prop::collection::vec(1..30usize, 1..4),
        ranks in 1..5u64,
        local in 1..4u64,
        seed in any::<u64>(),
        step in 0..1_000_000u64,
    ) {
        let ranges = ranges(&counts);
        let new = || Sampler::new(&ranges, &vec![1.0; counts.len()], ranks * local, seed).unwrap();
        let first = new();
        for step in 0..20 {
            let _ = first.draw(step);
        }
        let draw = first.draw(step);
        prop_assert_eq!(&new().draw(step), &draw);
        let parts: Vec<usize> = (0..ranks).flat_map(|rank| draw.clips[first.part(rank, ranks).unwrap()].to_vec()).collect();
        prop_assert_eq!(parts, draw.clips);
    }
}

#[test]
fn orders_are_shuffled_and_differ() {
    let ranges = ranges(&[1000, 24]);
    let sampler = |seed| Sampler::new(&ranges, &[1.0, 1.0], 1, seed).unwrap();
    let clips = |seed, cycle: u64| -> Vec<usize> {
        let steps = sampler(seed).steps_of_cycle();
        (cycle * steps..(cycle + 1) * steps)
            .map(|step| sampler(seed).draw(step).clips[0])
            .collect()
    };
    let first = clips(1, 0);
    assert_ne!(first, clips(1, 1), "passes");
    assert_ne!(first, clips(2, 0), "seeds");
    let fixed = first.iter().enumerate().filter(|(i, clip)| i == *clip).count();
    assert!(fixed < 8, "{fixed} of 1024 stand where they stood"); // 1 is expected
    // Of the neighbours of an order as many rise as fall: 512 ± 9.
    let rising = first.windows(2).filter(|pair| pair[0] < pair[1]).count();
    assert!((470..=555).contains(&rising), "{rising}");
    // The batches of the small bucket are spread over the cycle.
    let small: Vec<usize> = (0..1024).filter(|&i| first[i] >= 1000).collect();
    assert!(small[0] < 250 && small[23] > 774, "{small:?}");
}

#[test]
fn weights_set_the_share_of_pictures() {
    let (folder, out) = (folder(), tempfile::tempdir().unwrap());
    let index = encoded(folder.path(), out.path(), &settings()).unwrap();
    let mix = |image_share| Mix {
        image_share,
        ..Mix::default()
    };
    let weights = Sampler::weights_for(&index, &mix(0.25)).unwrap();
    // 3 clips and 2 pictures: a quarter of 5 over 2, three quarters of 5 over 3.
    assert_eq!(weights, [1.25, 0.625]);
    let sampler = Sampler::new(&ranges(&[300, 200]), &weights, 5, 1).unwrap();
    let steps = sampler.steps_of_cycle();
    assert_eq!(steps, 100);
    assert_eq!((0..steps).filter(|&step| sampler.draw(step).bucket == 1).count(), 25);
    assert_eq!(Sampler::weights_for(&index, &mix(0.0)).unwrap()[1], 0.0);
    let none = Sampler::new(&ranges(&[300, 200]), &[1.0, 0.0], 5, 1).unwrap();
    assert!((0..100).all(|step| none.draw(step).bucket == 0));
    let error = Sampler::new(&ranges(&[3]), &[1.0, 2.0], 5, 1).unwrap_err().to_string();
    assert!(error.contains("`weights` is [1.0, 2.0]; allowed: 1 numbers"), "{error}");
    assert_eq!(
        Sampler::new(&ranges(&[0]), &[1.0], 5, 1).unwrap_err(),
        SamplerError::Empty
    );
    let error = sampler.part(0, 2).unwrap_err().to_string();
    assert_eq!(error, "`ranks` is 2; allowed: a divisor of the batch of 5");
    assert_eq!(settings().split, Split::Train);
}

#[test]
fn a_mix_that_asks_for_what_was_not_encoded_is_refused_by_field() {
    let (folder, out) = (folder(), tempfile::tempdir().unwrap());
    let index = encoded(folder.path(), out.path(), &settings()).unwrap();
    let buckets = &index.made_by.settings.buckets;
    let (clips, rate) = (buckets[0].to_string(), buckets[0].frame_rate_hz);
    let mix = |image_share, frame_rate_hz, bucket: &str| Mix {
        image_share,
        frame_rate_hz,
        bucket_shares: [(bucket.to_owned(), 1.0)].into(),
    };
    assert_eq!(
        Sampler::weights_for(&index, &mix(0.25, Some(rate), &clips)).unwrap(),
        [1.25, 0.625]
    );
    let problem = |mix| Sampler::weights_for(&index, &mix).unwrap_err().to_string();
    let found = problem(mix(0.25, Some(rate + 1.0), &clips));
    assert!(
        found.contains(&format!("`frame_rate_hz` is {}; allowed: {rate}", rate + 1.0)),
        "{found}"
    );
    let found = problem(mix(0.25, None, "51x512x512@10"));
    assert!(
        found.contains(&format!("`bucket_shares` is 51x512x512@10; allowed: {clips}")),
        "{found}"
    );
}
