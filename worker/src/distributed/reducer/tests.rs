use super::*;
use crate::distributed::testing::together;

/// Every parameter in a bucket of its own.
const SINGLE: ReducerConfig = ReducerConfig {
    bucket_bytes: 1,
    overlap: true,
};

fn parameters<const N: usize>(values: [&[f32]; N]) -> Vec<(String, Tensor)> {
    let named = values.iter().enumerate();
    named
        .map(|(i, v)| (format!("p{i}"), Tensor::from_slice(v).set_requires_grad(true)))
        .collect()
}

fn gradient(parameters: &[(String, Tensor)], i: usize) -> Option<Vec<f32>> {
    let gradient = parameters[i].1.grad();
    gradient.defined().then(|| Vec::try_from(gradient).unwrap())
}

/// d/dp of `scale · Σ p²/2` is `scale · p`.
fn half_square(p: &Tensor, scale: f64) -> Tensor {
    p.square().sum(Kind::Float) * (0.5 * scale)
}

#[test]
fn gradients_become_means_and_what_no_rank_used_has_none() {
    for config in [SINGLE, ReducerConfig::default()] {
        let results = together(2, |group| {
            let p = parameters([&[1.0, 2.0], &[3.0], &[4.0]]);
            let mut reducer = Reducer::new(&group, &p, config).unwrap();
            let mut steps = Vec::new();
            for scale in [1.0, 10.0] {
                let rank = f64::from(group.rank());
                for (_, variable) in &p {
                    variable.shallow_clone().zero_grad();
                }
                reducer.begin(true);
                // Rank 1 alone uses p1; nobody uses p2.
                let mut loss = half_square(&p[0].1, scale * (rank + 1.0));
                if rank == 1.0 {
                    loss += half_square(&p[1].1, scale);
                }
                loss.backward();
                reducer.finish().unwrap();
                steps.push([0, 1, 2].map(|i| gradient(&p, i)));
            }
            steps
        });
        for steps in results {
            for (step, scale) in steps.into_iter().zip([1.0, 10.0]) {
                let wanted = [Some(vec![1.5 * scale, 3.0 * scale]), Some(vec![1.5 * scale]), None];
                assert_eq!(step, wanted);
            }
        }
    }
}

#[test]
fn passes_before_the_last_add_up_and_are_sent_with_it() {
    let results = together(2, |group| {
        let p = parameters([&[2.0], &[5.0]]);
        let mut reducer = Reducer::new(&group, &p, SINGLE).unwrap();
        let rank = f64::from(group.rank());
        reducer.begin(false);
        // Only this pass uses p1.
        (half_square(&p[0].1, 1.0) + half_square(&p[1].1, rank)).backward();
        assert_eq!(reducer.finish().unwrap(), Overlap::default());
        let local = gradient(&p, 1);
        reducer.begin(true);
        half_square(&p[0].1, 10.0 * rank).backward();
        reducer.finish().unwrap();
        (local, gradient(&p, 0), gradient(&p, 1))
    });
    for (rank, (local, both, first)) in results.into_iter().enumerate() {
        assert_eq!(local, Some(vec![5.0 * rank as f32]));
        assert_eq!(both, Some(vec![2.0 + 10.0]));
        assert_eq!(first, Some(vec![2.5]));
    }
}

#[test]
fn buckets_are_sent_while_the_backward_pass_runs() {
    for overlap in [true, false] {
        let results = together(2, |group| {
            let layers: Vec<_> = (0..6)
                .map(|i| {
                    let weight = Tensor::eye(64, (Kind::Float, Device::Cpu)).set_requires_grad(true);
                    (format!("layer {i}"), weight)
                })
                .collect();
            let config = ReducerConfig { overlap, ..SINGLE };
            let mut reducer = Reducer::new(&group, &layers, config).unwrap();
            reducer.begin(true);
            let x = Tensor::ones([256, 64], (Kind::Float, Device::Cpu));
            let y = layers.iter().fold(x, |x, (_, weight)| x.matmul(weight));
            y.mean(Kind::Float).backward();
            reducer.finish().unwrap()
        });
        for step in results {
            assert_eq!(step.buckets, 6);
            if overlap {
                assert_eq!(step.begun_in_backward, 6);
                assert!(step.lead > Duration::ZERO, "{step:?}");
            } else {
                assert_eq!((step.begun_in_backward, step.lead), (0, Duration::ZERO));
            }
        }
    }
}

#[test]
fn a_gradient_that_grows_after_it_was_sent_is_an_error_and_the_next_step_is_not() {
    let results = together(2, |group| {
        let p = parameters([&[2.0]]);
        let mut reducer = Reducer::new(&group, &p, SINGLE).unwrap();
        reducer.begin(true);
        half_square(&p[0].1, 1.0).backward();
        half_square(&p[0].1, 1.0).backward();
        let error = reducer.finish().unwrap_err().to_string();
        p[0].1.shallow_clone().zero_grad();
        reducer.begin(true);
        half_square(&p[0].1, 1.0).backward();
        reducer.finish().unwrap();
        (error, gradient(&p, 0))
    });
    for (error, gradient) in results {
        assert!(error.starts_with("the gradient of `p0` grew again"), "{error}");
        assert_eq!(gradient, Some(vec![2.0]));
    }
}

#[test]
fn a_dropped_reducer_leaves_its_parameters_alone() {
    together(1, |group| {
        let p = parameters([&[2.0]]);
        let mut reducer = Reducer::new(&group, &p, SINGLE).unwrap();
        reducer.begin(true);
        drop(reducer);
        half_square(&p[0].1, 1.0).backward();
        assert_eq!(gradient(&p, 0), Some(vec![2.0]));
        let frozen = Tensor::from_slice(&[1f32]);
        let error = Reducer::new(&group, &[("frozen".to_owned(), frozen)], SINGLE).unwrap_err();
        assert!(
            error
                .to_string()
                .starts_with("`frozen` cannot be trained by several processes"),
            "{error}"
        );
    });
}

#[test]
fn float32_gradients_of_rounded_weights_are_not_rounded_on_their_way() {
    let results = together(2, |group| {
        let weight = Tensor::from_slice(&[1f32])
            .to_kind(Kind::BFloat16)
            .set_requires_grad(true);
        assert!(crate::shim::keep_gradient_as_float(&weight));
        let p = [("w".to_owned(), weight)];
        let mut reducer = Reducer::new(&group, &p, SINGLE).unwrap();
        // 1 + 2⁻¹⁰ has no place in bfloat16: the ranks' gradients differ by too little for it.
        for pass in [false, true] {
            reducer.begin(pass);
            let scale = if pass {
                2f64.powi(-9) * f64::from(group.rank())
            } else {
                1.0
            };
            (&p[0].1 * scale).sum(Kind::Float).backward();
        }
        reducer.finish().unwrap();
        gradient(&p, 0)
    });
    assert_eq!(
        results,
        [Some(vec![1.0 + 2f32.powi(-10)]), Some(vec![1.0 + 2f32.powi(-10)])]
    );
}

#[test]
fn buckets_keep_to_their_size_and_to_one_number_format() {
    let tensors = [
        Tensor::zeros([4], (Kind::Float, Device::Cpu)),
        Tensor::zeros([2], (Kind::Float, Device::Cpu)),
        Tensor::zeros([2], (Kind::Float, Device::Cpu)),
        Tensor::zeros([2], (Kind::Double, Device::Cpu)),
        Tensor::zeros([100], (Kind::Double, Device::Cpu)),
    ];
    let named: Vec<_> = tensors
        .into_iter()
        .enumerate()
        .map(|(i, t)| (i.to_string(), t))
        .collect();
    let names: Vec<Vec<String>> = fill_buckets(&named, 16)
        .unwrap()
        .into_iter()
        .map(|bucket| bucket.slots.into_iter().map(|slot| slot.name).collect())
        .collect();
    assert_eq!(names, [vec!["4"], vec!["3"], vec!["2", "1"], vec!["0"]]);
}
