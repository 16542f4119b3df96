//! What an aggregate cluster comes down to: the clusters below it, and its leaves in order of preference (A37).
//!
//! ```text
//!   a ─► b ─► d            members  b c d e
//!   └──► c ─► d            leaves   d e        depth first; what comes again keeps its first place
//!        └──► e
//! ```
//!
//! What is complete stays until everything below the newest value is resolved (make before break). It does NOT resolve
//! leaves: each is a cluster like any other, shared with whoever else refers to it.

use super::{
    Assembler, ClusterUser,
    cluster::{Node, Outcome, Part},
};
use crate::{
    cache::Sources,
    resource::{ClusterName, Kind},
    snapshot::{ClusterError, Leaves, ResolvedCluster},
};
use std::{collections::BTreeSet, fmt::Display, mem, sync::Arc};

/// "Aggregate cluster depth: 16" (A37): levels from the cluster that a route names down to a leaf, both included.
const MAX_DEPTH: usize = 16;

impl Assembler {
    fn flat(&self, name: &ClusterName) -> Flat {
        flatten(name, |name| self.nodes.get(name)?.children())
    }

    /// Refers to every cluster below an aggregate.
    pub(super) fn join(&mut self, name: &ClusterName) {
        for member in self.flat(name).members {
            if self.nodes.get_mut(name).is_some_and(|node| node.members().insert(member.clone())) {
                self.refer(&member, ClusterUser::Aggregate(name.clone()));
            }
        }
    }

    /// Looks at what is below an aggregate (or what was one) again.
    pub(super) fn compose(&mut self, name: &ClusterName, cache: &Sources<'_>) {
        let Some(node) = self.nodes.get(name) else { return };
        let is_aggregate = node.children().is_some();
        let mut keep = BTreeSet::new();
        let mut changed = false;
        if is_aggregate {
            let flat = self.flat(name);
            let (outcome, missing) = self.sum(name, &flat, cache);
            let late = flat.leaves.iter().any(|leaf| self.nodes.get(leaf).is_some_and(Node::is_behind));
            keep = flat.members;
            if let Some(node) = self.nodes.get_mut(name) {
                changed = node.compose(name, outcome, missing, &mut self.origins);
                if late {
                    node.fall_behind();
                }
            }
        }
        // What is kept until the newest value is complete follows its own clusters meanwhile.
        let newest = |held: &Arc<ResolvedCluster>| match self.nodes.get(&held.cluster.name).map(Node::part) {
            Some(Part::Leaf(leaf)) => leaf,
            _ => Arc::clone(held),
        };
        if let Some(held) = self.nodes.get(name).and_then(Node::foreign_leaves) {
            keep.extend(held.iter().map(|leaf| leaf.cluster.name.clone()));
            let leaves = Leaves { first: newest(&held.first), rest: held.rest.iter().map(newest).collect() };
            if let Some(node) = self.nodes.get_mut(name) {
                changed |= node.refresh(name, leaves);
            }
        }
        self.note(name, changed);
        self.keep_members(name, keep);
    }

    /// What the leaves of an aggregate come to together, and what is missing.
    fn sum(&self, name: &ClusterName, flat: &Flat, cache: &Sources<'_>) -> (Outcome, Option<Arc<str>>) {
        let fail = |why: &dyn Display| Err(ClusterError(cache.text(Kind::Cluster, name.as_str(), why)));
        if flat.too_deep {
            // "depth 16 max else whole cluster TF" - A37.
            return (Outcome::Complete(fail(&"aggregates clusters more than 16 levels deep")), None);
        }
        let (mut leaves, mut errors, mut unreachable) = (Vec::new(), Vec::new(), false);
        for leaf in &flat.leaves {
            let Some(node) = self.nodes.get(leaf) else { continue };
            match node.part() {
                Part::Pending => return (Outcome::Incomplete, Some(node.describe_missing(leaf).into())),
                Part::Leaf(leaf) => leaves.push(leaf),
                // "non-existent children are skipped" - A74.
                Part::Failed(error) => errors.push(error),
                Part::Unreachable(part) => {
                    unreachable = true;
                    match part {
                        Ok(leaf) => leaves.push(leaf),
                        Err(error) => errors.push(error),
                    }
                }
            }
        }
        let state = Leaves::new(leaves).map_or_else(
            // "zero usable leaves -> cluster fails picks" - A74; "a cycle with no leaf -> error" - A37.
            || match errors.first() {
                None => fail(&"aggregates only itself"),
                Some(error) => fail(&format_args!("none of the clusters that it aggregates can be used: {error}")),
            },
            Ok,
        );
        let outcome = if unreachable { Outcome::Unreachable(state) } else { Outcome::Complete(state) };
        (outcome, None)
    }

    /// Gives up the clusters below an aggregate that it does not need any more.
    pub(super) fn keep_members(&mut self, name: &ClusterName, keep: BTreeSet<ClusterName>) {
        let Some(node) = self.nodes.get_mut(name) else { return };
        let before = mem::replace(node.members(), keep);
        let gone: Vec<_> = before.difference(node.members()).cloned().collect();
        for member in gone {
            self.clusters.remove(member.as_shared(), ClusterUser::Aggregate(name.clone()));
            self.drop_if_unused(&member);
        }
    }
}

// === The graph ===

/// The graph below one cluster.
#[derive(Debug, Default, PartialEq)]
struct Flat {
    /// Every cluster below the root, aggregates included.
    members: BTreeSet<ClusterName>,
    /// Those that are no aggregates (as far as is known), in order of preference.
    leaves: Vec<ClusterName>,
    /// Something is below level 16: "the whole cluster" fails. The rest of the graph is followed nevertheless, so that
    /// its repair is noticed.
    too_deep: bool,
}

/// Follows the graph from `root`; `children` is `None` for what is no aggregate.
fn flatten<'a>(root: &'a ClusterName, children: impl Fn(&ClusterName) -> Option<&'a [ClusterName]>) -> Flat {
    let mut flat = Flat::default();
    follow(root, root, 1, &children, &mut flat);
    flat
}

fn follow<'a>(
    root: &ClusterName,
    name: &ClusterName,
    level: usize,
    children: &impl Fn(&ClusterName) -> Option<&'a [ClusterName]>,
    flat: &mut Flat,
) {
    let Some(children_of_name) = children(name) else {
        flat.leaves.push(name.clone());
        return;
    };
    for child in children_of_name {
        if level == MAX_DEPTH {
            flat.too_deep = true;
            return;
        }
        // "duplicates keep first position, loops tolerated" - A37.
        if child != root && flat.members.insert(child.clone()) {
            follow(root, child, level + 1, children, flat);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::{collection::vec, prelude::*};
    use std::collections::BTreeMap;

    type Graph = BTreeMap<ClusterName, Vec<ClusterName>>;

    /// `a: b c; b: d`; what stands on no left side is a leaf.
    fn graph(text: &str) -> Graph {
        let names = |list: &str| list.split_whitespace().map(ClusterName::from).collect();
        let lines = text.split(';').filter_map(|line| line.split_once(':'));
        lines.map(|(name, children)| (name.trim().into(), names(children))).collect()
    }

    fn of(graph: &Graph) -> Flat {
        flatten(&ClusterName::from("a"), |name| graph.get(name).map(Vec::as_slice))
    }

    fn text<'a>(names: impl IntoIterator<Item = &'a ClusterName>) -> String {
        names.into_iter().map(ClusterName::as_str).collect::<Vec<_>>().join(" ")
    }

    /// `a` at level 1, and one aggregate below the other down to a leaf at this level.
    fn chain(levels: usize) -> Graph {
        let name = |level| match level {
            1 => ClusterName::from("a"),
            level => ClusterName::new(format!("c{level}")),
        };
        (1..levels).map(|level| (name(level), vec![name(level + 1)])).collect()
    }

    #[test]
    fn leaves_come_depth_first_and_once() {
        for (case, description, leaves, members) in [
            ("a leaf", "", "a", ""),
            ("a list", "a: x y z", "x y z", "x y z"),
            ("depth first", "a: b y; b: x z", "x z y", "b x y z"),
            ("a duplicate", "a: x y x", "x y", "x y"),
            ("a duplicate further down", "a: b x; b: y x", "y x", "b x y"),
            ("a diamond", "a: b c; b: d; c: d e; d: x; e: y", "x y", "b c d e x y"),
            ("a loop with a leaf", "a: b x; b: a y", "y x", "b x y"),
            ("its own child", "a: a x", "x", "x"),
            ("a loop below", "a: b; b: c; c: b x", "x", "b c x"),
            ("a loop without a leaf", "a: b; b: a", "", "b"),
            ("two loops", "a: b c; b: c b; c: a b", "", "b c"),
        ] {
            let flat = of(&graph(description));
            let found = (text(&flat.leaves), text(&flat.members), flat.too_deep);
            assert_eq!(found, (leaves.to_owned(), members.to_owned(), false), "{case}");
        }
    }

    #[test]
    fn sixteen_levels_with_the_leaf_are_allowed_and_seventeen_are_too_deep() {
        let deepest = of(&chain(16));
        assert_eq!((text(&deepest.leaves), deepest.too_deep), ("c16".to_owned(), false));
        let deeper = of(&chain(17));
        assert_eq!((deeper.leaves.len(), deeper.members.len(), deeper.too_deep), (0, 15, true));
        // Also beside leaves that are near.
        let mut beside = chain(17);
        beside.entry("a".into()).or_default().insert(0, "near".into());
        assert!(of(&beside).too_deep);
    }

    /// The rule without the bookkeeping: every path that does not meet itself, and of equal leaves the first.
    fn reference(graph: &Graph) -> Vec<ClusterName> {
        fn walk(name: &ClusterName, path: &mut Vec<ClusterName>, graph: &Graph, leaves: &mut Vec<ClusterName>) {
            if path.contains(name) {
                return;
            }
            let Some(children) = graph.get(name) else {
                if !leaves.contains(name) {
                    leaves.push(name.clone());
                }
                return;
            };
            path.push(name.clone());
            for child in children {
                walk(child, path, graph, leaves);
            }
            path.pop();
        }
        let mut leaves = Vec::new();
        walk(&ClusterName::from("a"), &mut Vec::new(), graph, &mut leaves);
        leaves
    }

    proptest! {
        /// Up to seven aggregates that name each other and four leaves at will.
        #[test]
        fn any_graph_has_the_leaves_of_its_paths(edges in vec(vec(0usize..11, 1..4), 1..8)) {
            let name = |index: usize| ClusterName::from(["a", "b", "c", "d", "e", "f", "g", "w", "x", "y", "z"][index]);
            let graph: Graph = edges
                .iter()
                .enumerate()
                .map(|(index, children)| (name(index), children.iter().copied().map(name).collect()))
                .collect();
            let flat = of(&graph);
            prop_assert!(!flat.too_deep);
            prop_assert_eq!(flat.leaves, reference(&graph));
        }
    }
}
