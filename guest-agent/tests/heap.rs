//! What lies on the heap before and after it takes huge pages stays what it is.

use brig_agent::heap::use_huge_pages;

fn main() {
    let before = pieces(1000);
    use_huge_pages();
    let after = pieces(200_000);
    let mut large = vec![7u8; 10 << 20];
    large.extend(vec![7u8; 40 << 20]);
    drop(before.iter().skip(1).step_by(2).cloned().collect::<Vec<_>>());
    use_huge_pages();
    for (n, piece) in before.iter().chain(&after[..1000]).enumerate() {
        assert!(piece.iter().all(|&byte| byte == (n % 1000) as u8), "piece {n}");
    }
    drop((before, after));
    assert!(large.iter().all(|&byte| byte == 7));
    // Where the kernel counts huge pages, most of this is in some.
    let smaps = std::fs::read_to_string("/proc/self/smaps").unwrap_or_default();
    let heap = smaps.lines().skip_while(|line| !line.ends_with("[heap]"));
    let advised = heap
        .take_while(|line| !line.contains("[stack]"))
        .any(|line| line.starts_with("VmFlags") && line.contains(" hg"));
    let supported = std::path::Path::new("/sys/kernel/mm/transparent_hugepage/enabled").exists();
    assert_eq!(advised, supported, "the kernel was told of huge pages");
    println!("the heap is whole after it has taken to huge pages");
}

fn pieces(count: u32) -> Vec<Box<[u8]>> {
    (0..count).map(|n| vec![n as u8; 100].into()).collect()
}
