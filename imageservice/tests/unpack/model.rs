//! What a layer's entries mean, told a second time, on a tree in memory.
//! Test code. Owns nothing. Must never share code with the extractor.

use std::collections::{BTreeMap, BTreeSet};

use crate::random::Op;

#[derive(Debug, Clone)]
enum Node {
    Dir { mode: u32, opaque: bool },
    File(u8),
    Link(String),
    Whiteout,
}

/// Paths to nodes; the root is not in it.
#[derive(Debug, Clone, Default)]
pub(crate) struct Model {
    nodes: BTreeMap<Vec<String>, Node>,
    whiteouts: BTreeSet<Vec<String>>,
}

fn parts(path: &str) -> Vec<String> {
    path.split('/').map(str::to_owned).collect()
}

impl Model {
    /// `None` when the layer must be refused.
    pub(crate) fn apply(&mut self, op: &Op) -> Option<()> {
        match op {
            Op::File(path, data) => self.put(path, Node::File(*data)),
            Op::Symlink(path, target) => self.put(path, Node::Link(target.clone())),
            Op::Dir(path, mode) => {
                let path = self.real_name(path)?;
                if let Some(Node::Dir { mode: old, .. }) = self.nodes.get_mut(&path) {
                    *old = *mode;
                } else {
                    self.make_dir(path, *mode);
                }
                Some(())
            }
            Op::HardLink(path, target) => {
                let path = self.real_name(path)?;
                let target = self.real_name(target)?;
                let node = self.nodes.get(&target).filter(|_| path != target)?.clone();
                if matches!(node, Node::Dir { .. }) {
                    return None;
                }
                self.clear(&path);
                self.nodes.insert(path, node);
                Some(())
            }
            Op::Whiteout(path) => {
                let path = self.real_name(path)?;
                match self.nodes.get_mut(&path) {
                    None => {
                        self.nodes.insert(path.clone(), Node::Whiteout);
                    }
                    Some(Node::Dir { opaque, .. }) => *opaque = true,
                    Some(_) => {}
                }
                self.whiteouts.insert(path);
                Some(())
            }
            Op::Opaque(path) => {
                let path = self.real(parts(path))?;
                if let Some(Node::Dir { opaque, .. }) = self.nodes.get_mut(&path) {
                    *opaque = true;
                }
                Some(())
            }
        }
    }

    pub(crate) fn tree(&self) -> BTreeMap<String, String> {
        let show = |node: &Node| match node {
            Node::Dir { mode, opaque } => format!("dir {mode:o}{}", if *opaque { " opaque" } else { "" }),
            Node::File(data) => format!("file {:?}", [*data; 3]),
            Node::Link(target) => format!("link {target}"),
            Node::Whiteout => "whiteout".to_owned(),
        };
        self.nodes.iter().map(|(path, node)| (path.join("/"), show(node))).collect()
    }

    fn put(&mut self, path: &str, node: Node) -> Option<()> {
        let path = self.real_name(path)?;
        self.clear(&path);
        self.nodes.insert(path, node);
        Some(())
    }

    fn clear(&mut self, path: &[String]) {
        self.nodes.retain(|other, _| !other.starts_with(path));
    }

    fn make_dir(&mut self, path: Vec<String>, mode: u32) {
        self.clear(&path);
        let opaque = self.whiteouts.contains(&path);
        self.nodes.insert(path, Node::Dir { mode, opaque });
    }

    /// The directory followed through links, the name itself not.
    fn real_name(&mut self, path: &str) -> Option<Vec<String>> {
        let mut above = parts(path);
        let name = above.pop()?;
        let mut path = self.real(above)?;
        path.push(name);
        Some(path)
    }

    /// Follows links as if the layer were everything; makes what is missing.
    fn real(&mut self, path: Vec<String>) -> Option<Vec<String>> {
        let (mut at, mut links) = (Vec::new(), 0);
        let mut todo: Vec<String> = path.into_iter().rev().collect();
        while let Some(part) = todo.pop() {
            match part.as_str() {
                "" | "." => continue,
                ".." => {
                    at.pop();
                    continue;
                }
                _ => at.push(part),
            }
            match self.nodes.get(&at) {
                Some(Node::Dir { .. }) => {}
                None => self.make_dir(at.clone(), 0o755),
                Some(Node::Whiteout) if self.whiteouts.contains(&at) => self.make_dir(at.clone(), 0o755),
                Some(Node::Link(target)) => {
                    links += 1;
                    if links > 40 {
                        return None;
                    }
                    todo.extend(parts(target).into_iter().rev());
                    if target.starts_with('/') {
                        at.clear();
                    } else {
                        at.pop();
                    }
                }
                Some(Node::File(_) | Node::Whiteout) => return None,
            }
        }
        Some(at)
    }
}
