use std::os::fd::AsFd as _;

use super::*;

#[test]
fn a_device_name_that_the_kernel_could_not_hold_is_refused() {
    let file = std::fs::File::open("/dev/null").unwrap();
    for name in ["", "a-name-of-sixteen"] {
        assert_eq!(tun_attach(file.as_fd(), name, 0).unwrap_err().kind(), io::ErrorKind::InvalidInput);
    }
}

#[test]
fn any_thread_may_ask_for_short_turns() {
    // A kernel that knows no turns of one's choice takes the wish and leaves things as they are.
    std::thread::spawn(|| ask_for_short_turns(Duration::from_micros(100)).unwrap()).join().unwrap();
}
