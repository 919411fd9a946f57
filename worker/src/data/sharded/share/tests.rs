use std::fs;
use std::sync::Mutex;

use super::*;

/// Files that say which they are, made by whoever takes them.
fn make_numbered(folder: &Path, count: usize, pause: Duration, made: &Mutex<Vec<usize>>) -> Vec<Stored> {
    let names: Vec<String> = (0..count).map(|i| format!("{i}")).collect();
    let mut make = |i: usize, within: &mut dyn FnMut(f64) -> Result<(), ShardError>| {
        within(0.5)?;
        std::thread::sleep(pause);
        made.lock().unwrap().push(i);
        Ok(vec![i as u8; 3])
    };
    make_together(folder, &names, &mut make, &mut |_| Ok(())).unwrap()
}

#[test]
fn processes_on_one_folder_make_each_file_once() {
    let folder = tempfile::tempdir().unwrap();
    let made = Mutex::new(Vec::new());
    let worker = || make_numbered(folder.path(), 12, Duration::from_millis(5), &made);
    let (one, other) = std::thread::scope(|scope| {
        let (one, other) = (scope.spawn(worker), scope.spawn(worker));
        (one.join().unwrap(), other.join().unwrap())
    });
    assert_eq!(one, other);
    let mut made = made.into_inner().unwrap();
    made.sort_unstable();
    assert_eq!(made, (0..12).collect::<Vec<_>>());
}

#[test]
fn a_killed_processs_file_is_made_by_another() {
    let folder = tempfile::tempdir().unwrap();
    let work = folder.path().join(WORK);
    fs::create_dir_all(&work).unwrap();
    fs::write(work.join("1.partial"), b"the beginning of a sh").unwrap();
    let lock = fs::File::create(work.join("1.lock")).unwrap();
    lock.lock().unwrap();
    // The system lets go of a lock when its holder dies.
    let death = std::thread::spawn(move || {
        std::thread::sleep(2 * LOOK_EVERY);
        drop(lock);
    });
    let made = Mutex::new(Vec::new());
    make_numbered(folder.path(), 3, Duration::ZERO, &made);
    assert!(death.is_finished(), "it was waited for");
    assert_eq!(made.into_inner().unwrap(), [0, 2, 1]);
    assert_eq!(fs::read(folder.path().join("1")).unwrap(), [1; 3]);
    death.join().unwrap();
}
