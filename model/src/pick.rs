//! Random choices, repeatable from a recorded seed.

use rand::SeedableRng;
use rand::rngs::StdRng;
use rand::seq::index;

/// Chooses `count` of `names` by `seed`, in their original order. The same arguments give the same choice;
/// `label` keeps two choices of one run apart. More than there are gives all of them.
pub fn choose(names: &[String], count: usize, seed: u64, label: &str) -> Vec<String> {
    let mut rng = StdRng::seed_from_u64(seed ^ fnv1a(label));
    let mut chosen = index::sample(&mut rng, names.len(), count.min(names.len())).into_vec();
    chosen.sort_unstable();
    chosen.into_iter().map(|i| names[i].clone()).collect()
}

/// FNV-1a, 64 bit: stable over versions, unlike the standard library's hasher.
fn fnv1a(text: &str) -> u64 {
    text.bytes().fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(n: usize) -> Vec<String> {
        (0..n).map(|i| format!("web-{i}")).collect()
    }

    #[test]
    fn the_same_seed_makes_the_same_choice_and_every_replica_gets_its_turn() {
        let all = names(5);
        let mut seen = std::collections::BTreeSet::new();
        for seed in 0..200 {
            let first = choose(&all, 2, seed, "victim");
            assert_eq!(first, choose(&all, 2, seed, "victim"));
            assert_eq!(first.len(), 2);
            seen.extend(first);
        }
        assert_eq!(seen.len(), 5);
    }

    #[test]
    fn asking_for_more_than_there_are_gives_all_in_order() {
        assert_eq!(choose(&names(3), 9, 1, "x"), names(3));
    }
}
