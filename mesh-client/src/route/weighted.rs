//! A weighted random choice: one cluster of a traffic split (A28).
//!
//! It is compiled when the configuration arrives, and random numbers are passed in, so that tests can own them.
//!
//! It does NOT look at the health of what it chooses: "done before load balancing, regardless of cluster health" (A31).

/// Weights as cumulative sums: a choice is one binary search.
#[derive(Clone, Debug)]
pub(crate) struct WeightedChoice {
    /// Ascending; the last one, which is the total, is not zero.
    sums: Box<[u64]>,
}

impl WeightedChoice {
    /// `None` if all weights are zero or there are none: nothing could be chosen.
    pub(crate) fn compile(weights: impl IntoIterator<Item = u32>) -> Option<Self> {
        let sums = weights.into_iter().scan(0, |sum: &mut u64, weight| {
            // In u64, because u32 weights may sum up to more than u32::MAX where no validation forbids it.
            *sum += u64::from(weight);
            Some(*sum)
        });
        let sums: Box<[u64]> = sums.collect();
        sums.last().is_some_and(|&total| total > 0).then_some(Self { sums })
    }

    /// The sum of all weights, at least 1: draws are from `0..total`.
    pub(crate) fn total(&self) -> u64 {
        self.sums.last().copied().unwrap_or(1)
    }

    /// The index that owns `draw`. Something of weight zero owns none; a draw that is too large wraps around.
    pub(crate) fn choose(&self, draw: u64) -> usize {
        let draw = draw % self.total();
        self.sums.partition_point(|&sum| sum <= draw)
    }
}

#[cfg(test)]
mod tests {
    use super::WeightedChoice;
    use proptest::prelude::*;

    /// Pearson's statistic of `draws` choices against the weights, and the degrees of freedom.
    fn chi_square(weights: &[u32], draws: u32) -> (f64, usize) {
        let choice = WeightedChoice::compile(weights.iter().copied()).expect("weights are not zero");
        let mut rng = fastrand::Rng::with_seed(0x5eed);
        let mut seen = vec![0_u32; weights.len()];
        for _ in 0..draws {
            seen[choice.choose(rng.u64(..choice.total()))] += 1;
        }
        let share = |weight: u32| f64::from(draws) * f64::from(weight) / choice.total() as f64;
        let terms = seen.iter().zip(weights).filter(|&(_, &weight)| weight > 0);
        let terms = terms.map(|(&seen, &weight)| (f64::from(seen) - share(weight)).powi(2) / share(weight));
        (terms.clone().sum(), terms.count() - 1)
    }

    #[test]
    fn shares_follow_the_weights() {
        // 0.999 quantiles of the chi-square distribution with 1 to 4 degrees of freedom.
        let limits = [10.83, 13.82, 16.27, 18.47];
        for weights in
            [&[75, 25][..], &[50, 50], &[1, 99], &[1, 0, 3], &[10, 20, 30, 40], &[u32::MAX, 1 << 30, 7 << 28]]
        {
            let (statistic, freedom) = chi_square(weights, 20_000);
            assert!(statistic < limits[freedom - 1], "{weights:?}: {statistic}");
        }
    }

    #[test]
    fn each_draw_has_its_owner() {
        let choice = WeightedChoice::compile([2, 0, 1]).expect("weights are not zero");
        assert_eq!((0..3).map(|draw| choice.choose(draw)).collect::<Vec<_>>(), [0, 0, 2]);
    }

    #[test]
    fn nothing_to_choose_from_is_no_choice() {
        assert!(WeightedChoice::compile([]).is_none());
        assert!(WeightedChoice::compile([0, 0]).is_none());
    }

    proptest! {
        #[test]
        fn what_has_no_weight_is_never_chosen(weights in prop::collection::vec(any::<u32>(), 1..20), draw: u64) {
            if let Some(choice) = WeightedChoice::compile(weights.iter().copied()) {
                prop_assert!(weights[choice.choose(draw)] > 0);
            } else {
                prop_assert!(weights.iter().all(|&weight| weight == 0));
            }
        }
    }
}
