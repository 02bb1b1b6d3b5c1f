//! What ps(1) shows as the arguments of the calling process: a place in its memory.
#![allow(unsafe_code)]

use std::{fs, io};

/// The place, which is as long as the arguments that the process was started with.
#[derive(Debug)]
pub struct Arguments {
    start: usize,
    length: usize,
}

impl Arguments {
    /// Where the kernel has them: fields 48 and 49 of proc_pid_stat(5).
    ///
    /// # Errors
    /// Those of reading the file; `InvalidData` when it has no such fields.
    pub fn find() -> io::Result<Arguments> {
        let stat = fs::read_to_string("/proc/self/stat")?;
        // "pid (name) state ...": the name may hold anything, and the state is field 3.
        let mut fields = stat.rsplit_once(") ").map_or("", |(_, rest)| rest).split(' ');
        let mut number = |skip| fields.nth(skip).and_then(|field| field.parse::<usize>().ok());
        match (number(48 - 3), number(0)) {
            (Some(start), Some(end)) if 0 < start && start <= end => Ok(Arguments {
                start,
                length: end - start,
            }),
            _ => Err(io::ErrorKind::InvalidData.into()),
        }
    }

    /// Puts others there, each with its zero at the end; cut off where there is no room, and
    /// with zeros after them where there is more.
    pub fn replace(&mut self, with: &[&[u8]]) {
        let place = std::ptr::with_exposed_provenance_mut::<u8>(self.start);
        // SAFETY: the kernel put the arguments there when it executed this program, on the
        // stack above all frames, where they stay mapped and writable. The standard library
        // makes copies for whoever asks for them and keeps no reference into them while that
        // goes on; there are no other threads.
        let place = unsafe { std::slice::from_raw_parts_mut(place, self.length) };
        place.fill(0);
        let bytes = with.iter().flat_map(|argument| argument.iter().chain(&[0]));
        for (to, from) in place.iter_mut().zip(bytes) {
            *to = *from;
        }
    }
}
