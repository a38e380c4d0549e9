//! "Did you mean": the nearest of some known names.

/// The known name that is nearest to `wrong`, if one is near enough to be a likely slip.
pub fn closest<'a>(wrong: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    // No name of a person's making is longer, and the distance takes quadratic time.
    if wrong.len() > 200 {
        return None;
    }
    let most = (wrong.chars().count() / 3).max(1);
    known
        .into_iter()
        .map(|name| (distance(&wrong.to_lowercase(), &name.to_lowercase()), name))
        .filter(|(d, name)| {
            *d <= most || name.contains(wrong) && wrong.len() > 2 || wrong.contains(name) && name.len() > 2
        })
        .min_by_key(|(d, _)| *d)
        .map(|(_, name)| name)
}

/// A help text for a name that is not known: the nearest one, or all of them.
pub fn did_you_mean<'a>(wrong: &str, known: impl IntoIterator<Item = &'a str>) -> String {
    let known: Vec<&str> = known.into_iter().collect();
    match closest(wrong, known.iter().copied()) {
        Some(name) => format!("did you mean `{name}`?"),
        None if known.is_empty() => "there are none".to_owned(),
        None => format!("there are: {}", known.join(", ")),
    }
}

/// Edit distance: insertions, deletions, substitutions and swaps of neighbours count one each (optimal string
/// alignment), for a swap is the commonest slip.
fn distance(a: &str, b: &str) -> usize {
    let (a, b): (Vec<char>, Vec<char>) = (a.chars().collect(), b.chars().collect());
    let mut before: Vec<usize> = Vec::new();
    let mut above: Vec<usize> = (0..=b.len()).collect();
    for i in 1..=a.len() {
        let mut row = vec![i];
        for j in 1..=b.len() {
            let substituted = above[j - 1] + usize::from(a[i - 1] != b[j - 1]);
            let mut least = substituted.min(above[j] + 1).min(row[j - 1] + 1);
            if i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1] {
                least = least.min(before[j - 2] + 1);
            }
            row.push(least);
        }
        before = std::mem::replace(&mut above, row);
    }
    above[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slip_of_the_finger_finds_the_name_that_was_meant() {
        assert_eq!(closest("dealy", ["delay", "jitter"]), Some("delay"));
        assert_eq!(closest("teh", ["the", "then"]), Some("the"));
        assert_eq!(distance("kitten", "sitting"), 3);
        assert_eq!(closest("SIGTERM", ["KILL", "TERM"]), Some("TERM"));
        assert_eq!(closest("web", ["web-1", "store"]), Some("web-1"));
        assert_eq!(closest("zebra", ["delay", "jitter"]), None);
    }
}
