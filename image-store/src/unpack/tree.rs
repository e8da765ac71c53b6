//! The merged tree of an image's layers, in memory: names, attributes, and where the data of files lies.
//!
//! Nodes are numbered, and a directory maps names to numbers, so that hard links are several names of one number and
//! nothing is recursive: a tree of any depth is built, changed and dropped in constant stack.

use std::{
    collections::{BTreeMap, HashSet},
    rc::Rc,
};

use super::UnpackError;
use crate::tar::Timestamp;

/// Most bytes of names, link targets and distinct sets of extended attributes together. With `max_inodes` it
/// bounds the memory of a tree: Debian's 100,000 names are 2 MiB.
pub const TEXT_BYTES_MAX: usize = 64 << 20;

/// Permission bits of a directory that no entry described.
const IMPLICIT_DIRECTORY_MODE: u16 = 0o755;

/// Number of a node in its tree.
pub type NodeId = u32;

/// The root directory.
pub const ROOT: NodeId = 0;

/// Extended attributes, full name and value, sorted by name.
pub type Xattrs = Vec<(Vec<u8>, Vec<u8>)>;

/// Owner, permissions, time and extended attributes.
#[derive(Clone, Debug, Default)]
pub struct Attributes {
    /// Permission, set-id and sticky bits.
    pub mode: u16,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Time of the last modification.
    pub mtime: Timestamp,
    /// Extended attributes; nodes that have the same share them.
    pub xattrs: Option<Rc<Xattrs>>,
}

impl Attributes {
    /// Those of a directory that only its content tells of.
    pub fn implicit_directory(mtime: Timestamp) -> Self {
        Self {
            mode: IMPLICIT_DIRECTORY_MODE,
            mtime,
            ..Self::default()
        }
    }
}

/// What a node is; `D` says where the data of a file is ([`super::Sink::Data`]).
#[derive(Debug)]
pub enum Content<D> {
    /// A directory.
    Directory(BTreeMap<Box<[u8]>, Child>),
    /// A regular file.
    File(D),
    /// A symbolic link and its target.
    Symlink(Box<[u8]>),
    /// A character device, major and minor number as the kernel encodes them (`new_encode_dev`).
    CharDevice(u32),
    /// A block device.
    BlockDevice(u32),
    /// A named pipe.
    Fifo,
}

/// An inode.
#[derive(Debug)]
pub struct Node<D> {
    /// Owner, permissions …
    pub attributes: Attributes,
    /// What it is.
    pub content: Content<D>,
    /// Names that it has. A directory has one, the root as well.
    pub links: u32,
}

/// A name in a directory.
#[derive(Clone, Copy, Debug)]
pub struct Child {
    /// What it names.
    pub node: NodeId,
    /// The last layer that had an entry for it or for something below it.
    pub layer: u16,
}

/// Nodes by number, in pieces that never move: a vector that grew would for a moment take the memory twice.
struct Nodes<D> {
    pieces: Vec<Vec<Node<D>>>,
    length: usize,
}

impl<D> Nodes<D> {
    /// Nodes of a piece.
    const PIECE: usize = 512;

    fn new() -> Self {
        Self {
            pieces: Vec::new(),
            length: 0,
        }
    }

    fn len(&self) -> usize {
        self.length
    }

    fn push(&mut self, node: Node<D>) {
        if self.length.is_multiple_of(Self::PIECE) {
            self.pieces.push(Vec::with_capacity(Self::PIECE));
        }
        self.pieces[self.length / Self::PIECE].push(node);
        self.length += 1;
    }

    fn get(&self, id: NodeId) -> &Node<D> {
        &self.pieces[id as usize / Self::PIECE][id as usize % Self::PIECE]
    }

    fn get_mut(&mut self, id: NodeId) -> &mut Node<D> {
        &mut self.pieces[id as usize / Self::PIECE][id as usize % Self::PIECE]
    }
}

/// A tree of nodes.
pub struct Tree<D> {
    nodes: Nodes<D>,
    /// Numbers of removed nodes, to be used again.
    free: Vec<NodeId>,
    max_nodes: u64,
    text_bytes: usize,
    xattrs: HashSet<Rc<Xattrs>>,
}

impl<D> Tree<D> {
    /// A tree with an empty root, for at most `max_nodes` nodes.
    pub fn new(max_nodes: u64) -> Self {
        let root = Node {
            attributes: Attributes::implicit_directory(Timestamp::default()),
            content: Content::Directory(BTreeMap::new()),
            links: 1,
        };
        let mut nodes = Nodes::new();
        nodes.push(root);
        Self {
            nodes,
            free: Vec::new(),
            max_nodes,
            text_bytes: 0,
            xattrs: HashSet::new(),
        }
    }

    /// Nodes in the tree.
    pub fn len(&self) -> usize {
        self.nodes.len() - self.free.len()
    }

    /// Whether there is nothing but the root.
    pub fn is_empty(&self) -> bool {
        self.len() == 1
    }

    /// Numbers that nodes have are smaller than this.
    pub fn id_limit(&self) -> usize {
        self.nodes.len()
    }

    /// A node.
    pub fn node(&self, id: NodeId) -> &Node<D> {
        self.nodes.get(id)
    }

    /// Whether a node is a directory.
    pub fn is_directory(&self, id: NodeId) -> bool {
        matches!(self.node(id).content, Content::Directory(_))
    }

    /// What `name` in a directory names. Nothing has names but a directory.
    pub fn child(&self, directory: NodeId, name: &[u8]) -> Option<Child> {
        match &self.node(directory).content {
            Content::Directory(children) => children.get(name).copied(),
            _ => None,
        }
    }

    /// Gives a node other attributes.
    pub fn set_attributes(&mut self, id: NodeId, attributes: Attributes) {
        self.nodes.get_mut(id).attributes = attributes;
    }

    /// Makes a node without a name yet.
    ///
    /// # Errors
    /// [`UnpackError::TooManyFiles`], [`UnpackError::TooLarge`].
    pub fn add(&mut self, attributes: Attributes, content: Content<D>) -> Result<NodeId, UnpackError> {
        if self.len() as u64 >= self.max_nodes {
            return Err(UnpackError::TooManyFiles(self.max_nodes));
        }
        if let Content::Symlink(target) = &content {
            self.charge(target.len())?;
        }
        let node = Node {
            attributes,
            content,
            links: 0,
        };
        if let Some(id) = self.free.pop() {
            *self.nodes.get_mut(id) = node;
            return Ok(id);
        }
        let id = NodeId::try_from(self.nodes.len()).map_err(|_| UnpackError::TooLarge("files"))?;
        self.nodes.push(node);
        Ok(id)
    }

    /// Gives `node` a name in a directory, taking it from what had it before.
    ///
    /// # Errors
    /// [`UnpackError::TooLarge`].
    pub fn link(
        &mut self,
        directory: NodeId,
        name: &[u8],
        node: NodeId,
        layer: u16,
    ) -> Result<(), UnpackError> {
        // Counted first: the node may live below what loses the name.
        self.nodes.get_mut(node).links += 1;
        self.unlink(directory, name);
        self.charge(name.len())?;
        if let Content::Directory(children) = &mut self.nodes.get_mut(directory).content {
            children.insert(name.into(), Child { node, layer });
        }
        Ok(())
    }

    /// Notes that a layer has an entry for a name or below it.
    pub fn touch(&mut self, directory: NodeId, name: &[u8], layer: u16) {
        if let Content::Directory(children) = &mut self.nodes.get_mut(directory).content
            && let Some(child) = children.get_mut(name)
        {
            child.layer = layer;
        }
    }

    /// Takes a name away, and with it what has no other.
    pub fn unlink(&mut self, directory: NodeId, name: &[u8]) {
        if let Content::Directory(children) = &mut self.nodes.get_mut(directory).content
            && let Some(child) = children.remove(name)
        {
            self.text_bytes -= name.len();
            self.release(child.node);
        }
    }

    /// Removes what layers before `layer` put below the name: all of it, or, when the layer has entries of its own
    /// there, everything but those.
    pub fn hide(&mut self, directory: NodeId, name: &[u8], layer: u16) {
        match self.child(directory, name) {
            Some(child) if child.layer < layer => self.unlink(directory, name),
            Some(child) => self.hide_children(child.node, layer),
            None => {}
        }
    }

    /// Removes what layers before `layer` put into a directory.
    pub fn hide_children(&mut self, directory: NodeId, layer: u16) {
        let mut pending = vec![directory];
        while let Some(directory) = pending.pop() {
            let Content::Directory(children) = &mut self.nodes.get_mut(directory).content else {
                continue;
            };
            let mut hidden = Vec::new();
            let mut freed = 0;
            children.retain(|name, child| {
                let keep = child.layer >= layer;
                if keep {
                    pending.push(child.node);
                } else {
                    freed += name.len();
                    hidden.push(child.node);
                }
                keep
            });
            self.text_bytes -= freed;
            for node in hidden {
                self.release(node);
            }
        }
    }

    /// One shared copy of a set of extended attributes.
    ///
    /// # Errors
    /// [`UnpackError::TooLarge`].
    pub fn share_xattrs(&mut self, mut xattrs: Xattrs) -> Result<Option<Rc<Xattrs>>, UnpackError> {
        if xattrs.is_empty() {
            return Ok(None);
        }
        xattrs.sort_unstable();
        let xattrs = Rc::new(xattrs);
        if let Some(shared) = self.xattrs.get(&xattrs) {
            return Ok(Some(shared.clone()));
        }
        self.charge(xattrs.iter().map(|(name, value)| name.len() + value.len()).sum())?;
        self.xattrs.insert(xattrs.clone());
        Ok(Some(xattrs))
    }

    /// Takes one name from a node; without the last one it goes, and its content loses its names too.
    fn release(&mut self, id: NodeId) {
        let mut pending = vec![id];
        while let Some(id) = pending.pop() {
            let node = self.nodes.get_mut(id);
            node.links -= 1;
            if node.links > 0 {
                continue;
            }
            node.attributes.xattrs = None;
            match std::mem::replace(&mut node.content, Content::Fifo) {
                Content::Directory(children) => {
                    for (name, child) in children {
                        self.text_bytes -= name.len();
                        pending.push(child.node);
                    }
                }
                Content::Symlink(target) => self.text_bytes -= target.len(),
                _ => {}
            }
            self.free.push(id);
        }
    }

    fn charge(&mut self, bytes: usize) -> Result<(), UnpackError> {
        self.text_bytes += bytes;
        if self.text_bytes > TEXT_BYTES_MAX {
            return Err(UnpackError::TooLarge("names and attributes"));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    type Tree = super::Tree<()>;

    fn directory(tree: &mut Tree, parent: NodeId, name: &str, layer: u16) -> NodeId {
        let content = Content::Directory(BTreeMap::new());
        let node = tree.add(Attributes::default(), content).unwrap();
        tree.link(parent, name.as_bytes(), node, layer).unwrap();
        node
    }

    #[test]
    fn a_subtree_goes_with_its_name_and_its_numbers_are_used_again() {
        let mut tree = Tree::new(100);
        let a = directory(&mut tree, ROOT, "a", 0);
        let b = directory(&mut tree, a, "b", 0);
        directory(&mut tree, b, "c", 0);
        assert_eq!((tree.len(), tree.id_limit()), (4, 4));
        tree.unlink(ROOT, b"a");
        assert!(tree.is_empty());
        for name in ["x", "y", "z"] {
            directory(&mut tree, ROOT, name, 1);
        }
        assert_eq!((tree.len(), tree.id_limit()), (4, 4));
    }

    #[test]
    fn a_node_lives_as_long_as_it_has_a_name() {
        let mut tree = Tree::new(100);
        let file = tree.add(Attributes::default(), Content::Fifo).unwrap();
        tree.link(ROOT, b"a", file, 0).unwrap();
        tree.link(ROOT, b"b", file, 0).unwrap();
        assert_eq!(tree.node(file).links, 2);
        tree.unlink(ROOT, b"a");
        assert_eq!((tree.node(file).links, tree.len()), (1, 2));
        tree.unlink(ROOT, b"b");
        assert!(tree.is_empty());
    }

    #[test]
    fn a_tree_of_any_depth_is_removed_in_constant_stack() {
        let mut tree = Tree::new(1 << 20);
        let mut here = ROOT;
        for _ in 0..200_000 {
            here = directory(&mut tree, here, "d", 0);
        }
        tree.hide(ROOT, b"d", 1);
        assert!(tree.is_empty());
    }

    #[test]
    fn what_names_take_is_given_back() {
        let mut tree = Tree::new(10);
        let name = "n".repeat(200);
        for layer in 0..(TEXT_BYTES_MAX / 200 + 10) {
            directory(&mut tree, ROOT, &name, layer as u16);
            let target = vec![b't'; 300].into();
            let link = tree.add(Attributes::default(), Content::Symlink(target)).unwrap();
            tree.link(ROOT, b"l", link, layer as u16).unwrap();
        }
        assert_eq!(tree.len(), 3);
    }

    #[test]
    fn equal_attributes_are_kept_once() {
        let mut tree = Tree::new(10);
        let set = |value: &[u8]| vec![(b"user.a".to_vec(), value.to_vec())];
        let first = tree.share_xattrs(set(b"1")).unwrap().unwrap();
        let second = tree.share_xattrs(set(b"1")).unwrap().unwrap();
        assert!(Rc::ptr_eq(&first, &second));
        assert!(tree.share_xattrs(Vec::new()).unwrap().is_none());
    }
}
