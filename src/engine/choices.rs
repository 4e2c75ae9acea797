//! Choices: given texts that are scored after a prompt instead of generated. In: the tokens of each choice. Out: which rows must run, what each of them predicts, and in the end
//! the sum of log probabilities of each choice. Beginnings that choices share are one row; it runs no model.

use crate::decoder::Slot;
use crate::decoder::page_table::PAGE;
use crate::units::TokenId;
use std::sync::Arc;

/// Texts among which one is chosen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Choices {
    /// What they say.
    pub texts: Vec<String>,
    /// The tokens of each, the one that ends an answer last; not empty.
    pub tokens: Vec<Vec<TokenId>>,
}

/// Pages that are kept for branches unless one needs more: so many choices run at once.
const SPARE_PAGES: usize = 64;

/// Tokens that run after one another in a sequence of their own.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Branch {
    /// What it goes on from; the prompt if `None`.
    pub parent: Option<usize>,
    /// Tokens of the choice before it.
    pub depth: usize,
    pub tokens: Vec<TokenId>,
    /// Of each row: the choices, with their next token.
    pub predicts: Vec<Vec<(usize, TokenId)>>,
}

/// The choices as a tree, each branch after the one it goes on from.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Tree {
    /// What the prompt's last row predicts.
    pub first: Vec<(usize, TokenId)>,
    pub branches: Vec<Branch>,
}

/// A row before branches are told apart.
struct Node {
    token: TokenId,
    children: Vec<usize>,
    predicts: Vec<(usize, TokenId)>,
}

impl Choices {
    /// The tree of rows; `apart`: without rows that choices share behind the prompt.
    pub(super) fn tree(&self, apart: bool) -> Tree {
        // The first node stands for the prompt's last row.
        let mut nodes = vec![Node { token: 0, children: Vec::new(), predicts: Vec::new() }];
        for (choice, tokens) in self.tokens.iter().enumerate() {
            let mut at = 0;
            for (i, &token) in tokens.iter().enumerate() {
                nodes[at].predicts.push((choice, token));
                if i + 1 == tokens.len() {
                    break;
                }
                at = match nodes[at]
                    .children
                    .iter()
                    .copied()
                    .find(|child| nodes[*child].token == token)
                {
                    Some(child) if !apart => child,
                    _ => {
                        nodes.push(Node { token, children: Vec::new(), predicts: Vec::new() });
                        let child = nodes.len() - 1;
                        nodes[at].children.push(child);
                        child
                    }
                };
            }
        }
        let mut branches = Vec::new();
        // (node that begins a branch, parent branch, tokens before it), the next one last.
        let mut waiting: Vec<(usize, Option<usize>, usize)> =
            nodes[0].children.iter().rev().map(|n| (*n, None, 0)).collect();
        while let Some((mut at, parent, depth)) = waiting.pop() {
            let mut branch = Branch { parent, depth, tokens: Vec::new(), predicts: Vec::new() };
            loop {
                branch.tokens.push(nodes[at].token);
                branch.predicts.push(std::mem::take(&mut nodes[at].predicts));
                match nodes[at].children[..] {
                    [only] => at = only,
                    _ => break,
                }
            }
            let (number, depth) = (branches.len(), depth + branch.tokens.len());
            branches.push(branch);
            waiting.extend(nodes[at].children.iter().rev().map(|n| (*n, Some(number), depth)));
        }
        Tree { first: std::mem::take(&mut nodes[0].predicts), branches }
    }

    /// Rows of the longest one.
    pub fn longest(&self) -> usize {
        self.tokens.iter().map(|tokens| tokens.len().saturating_sub(1)).max().unwrap_or(0)
    }

    /// Positions to keep for branches after a prompt of this length; branches that are `apart` run one after the other.
    pub(super) fn spare(&self, prompt: usize, apart: bool) -> usize {
        let tree = self.tree(apart);
        let pages = |b: &Branch| {
            (prompt + b.depth + b.tokens.len()).div_ceil(PAGE) - (prompt + b.depth) / PAGE
        };
        let mut path = vec![0; tree.branches.len()];
        for (i, branch) in tree.branches.iter().enumerate() {
            path[i] = pages(branch) + branch.parent.map_or(0, |parent| path[parent]);
        }
        let all: usize = if apart { 0 } else { tree.branches.iter().map(pages).sum() };
        all.min(SPARE_PAGES).max(path.into_iter().max().unwrap_or(0)) * PAGE
    }
}

/// Choices on their way.
pub(super) struct Scoring {
    pub choices: Arc<Choices>,
    pub tree: Tree,
    /// Sums of log probabilities so far.
    pub sums: Vec<f64>,
    /// The slot of each branch while it is open.
    pub slots: Vec<Option<Slot>>,
    /// Rows of each branch that have run.
    pub ran: Vec<usize>,
    /// Branches of each branch that are not closed.
    children: Vec<usize>,
    /// The next branch to open.
    pub next: usize,
    closed: usize,
}

impl Scoring {
    pub fn new(choices: Arc<Choices>, apart: bool) -> Scoring {
        let tree = choices.tree(apart);
        let count = tree.branches.len();
        let mut children = vec![0; count];
        tree.branches.iter().filter_map(|b| b.parent).for_each(|parent| children[parent] += 1);
        Scoring {
            sums: vec![0.0; choices.tokens.len()],
            slots: vec![None; count],
            ran: vec![0; count],
            children,
            next: 0,
            closed: 0,
            tree,
            choices,
        }
    }

    /// Takes the scores of the prompt's last row.
    pub fn begin(&mut self, scores: &[f32]) {
        add(&mut self.sums, &self.tree.first, scores);
    }

    /// The branch in this slot.
    pub fn branch_in(&self, slot: Slot) -> Option<usize> {
        self.slots.iter().position(|s| *s == Some(slot))
    }

    /// Takes the scores of a branch's next rows; the slots that nobody needs any more, in the order of closing.
    pub fn take(&mut self, branch: usize, scores: &[f32], vocab: usize) -> Vec<Slot> {
        for row in scores.chunks_exact(vocab) {
            if let Some(predicts) = self.tree.branches[branch].predicts.get(self.ran[branch]) {
                add(&mut self.sums, predicts, row);
            }
            self.ran[branch] += 1;
        }
        let mut free = Vec::new();
        let mut at = Some(branch);
        while let Some(branch) = at.filter(|b| self.has_run(*b) && self.children[*b] == 0) {
            free.extend(self.slots[branch].take());
            self.closed += 1;
            at = self.tree.branches[branch].parent;
            if let Some(parent) = at {
                self.children[parent] -= 1;
            }
        }
        free
    }

    /// All rows of a branch have run.
    pub fn has_run(&self, branch: usize) -> bool {
        self.ran[branch] == self.tree.branches[branch].tokens.len()
    }

    /// Number of the best choice, the first of equals.
    pub fn best(&self) -> usize {
        let better = |best: usize, i: usize| if self.sums[i] > self.sums[best] { i } else { best };
        (0..self.sums.len()).fold(0, better)
    }

    pub fn is_done(&self) -> bool {
        self.closed == self.tree.branches.len()
    }
}

fn add(sums: &mut [f64], predicts: &[(usize, TokenId)], scores: &[f32]) {
    if predicts.is_empty() {
        return;
    }
    let total = super::scoring::log_sum_exp(scores);
    for (choice, token) in predicts {
        sums[*choice] +=
            scores.get(*token as usize).map_or(f64::NEG_INFINITY, |s| f64::from(*s) - total);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shared_beginnings_are_one_branch_and_every_token_is_predicted_once() {
        let texts = vec![String::new(); 5];
        let choices = Choices {
            texts,
            tokens: vec![
                vec![1, 2, 3, 0],
                vec![1, 2, 4, 0],
                vec![5, 0],
                vec![1, 2, 0],
                vec![1, 2, 3, 6, 0],
            ],
        };
        let tree = choices.tree(false);
        assert_eq!(tree.first, [(0, 1), (1, 1), (2, 5), (3, 1), (4, 1)]);
        let shape: Vec<_> =
            tree.branches.iter().map(|b| (b.parent, b.depth, &b.tokens[..])).collect();
        assert_eq!(
            shape,
            [
                (None, 0, &[1, 2][..]),
                (Some(0), 2, &[3, 6][..]),
                (Some(0), 2, &[4][..]),
                (None, 0, &[5][..])
            ]
        );
        let rows: usize = tree.branches.iter().map(|b| b.tokens.len()).sum();
        assert_eq!(rows, 6, "no row twice");
        let predicted: usize =
            tree.branches.iter().flat_map(|b| &b.predicts).map(Vec::len).sum::<usize>()
                + tree.first.len();
        assert_eq!(predicted, choices.tokens.iter().map(Vec::len).sum::<usize>());
        // 20 positions: the second page has room for 12 more, but every branch copies it.
        assert_eq!(choices.spare(20, false), 4 * PAGE);
        // Apart every choice has all of its rows, and pages of the longest are enough.
        let apart = choices.tree(true);
        assert_eq!(apart.first, tree.first);
        let shape: Vec<_> =
            apart.branches.iter().map(|b| (b.parent, b.depth, &b.tokens[..])).collect();
        let each = [&[1, 2, 3][..], &[1, 2, 4], &[5], &[1, 2], &[1, 2, 3, 6]];
        assert_eq!(shape, each.map(|tokens| (None, 0, tokens)));
        let predicted: usize =
            apart.branches.iter().flat_map(|b| &b.predicts).map(Vec::len).sum::<usize>()
                + apart.first.len();
        assert_eq!(predicted, choices.tokens.iter().map(Vec::len).sum::<usize>());
        assert_eq!((choices.spare(20, true), choices.spare(30, true)), (PAGE, 2 * PAGE));
    }
}
