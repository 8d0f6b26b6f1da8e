//! What varies from one time to another, under names that do not.

/// A text with sizes, times, digests and such as words for what they are, and one space where there are several.
pub fn normal(text: &str) -> String {
    let lines = text.trim_end().lines().map(|line| {
        let mut words: Vec<String> = Vec::new();
        for word in line.split_whitespace() {
            let is_number = |word: &String| word.trim_start_matches(['+', '-']).parse::<f64>().is_ok();
            match words.last() {
                Some(last) if is_unit(word) && is_number(last) => {
                    let end = word.trim_start_matches(char::is_alphabetic);
                    *words.last_mut().unwrap() = format!("SIZE{end}");
                }
                Some(last) if last == "(process" => words.push("PID".into()),
                Some(last) if last == "DATE" && is_time_of_day(word) => *words.last_mut().unwrap() = "TIME".into(),
                _ => words.push(named(word)),
            }
        }
        words.join(" ")
    });
    lines.collect::<Vec<_>>().join("\n")
}

fn is_unit(word: &str) -> bool {
    ["B", "KiB", "MiB", "GiB"].contains(&word.trim_end_matches([',', '.', ';']))
}

fn is_time_of_day(word: &str) -> bool {
    shape(word) == "00:00:00"
}

/// A word with every digit as 0.
fn shape(word: &str) -> String {
    word.chars().map(|letter| if letter.is_ascii_digit() { '0' } else { letter }).collect()
}

fn named(word: &str) -> String {
    let shape = shape(word);
    if shape.starts_with("0000-00-00T00:00:00") {
        return format!("TIME{}", word.split_once('Z').unwrap().1);
    }
    if shape == "0000-00-00" {
        return "DATE".into();
    }
    if shape.starts_with("00000000T000000Z-") {
        return "TAG".into();
    }
    if let Some(("dir", rest)) = word.split_once(':') {
        let end = rest.rsplit('#').next().unwrap().trim_start_matches(|letter: char| letter.is_ascii_digit());
        return format!("DIRECTORY{end}");
    }
    let (mut text, mut digits) = (String::new(), String::new());
    for letter in word.chars().chain([' ']) {
        if letter.is_ascii_digit() || ('a'..='f').contains(&letter) {
            digits.push(letter);
            continue;
        }
        text.push_str(if digits.len() >= 16 { "DIGEST" } else { &digits });
        digits.clear();
        text.push(letter);
    }
    text.pop();
    text
}

#[test]
fn what_says_something_stays() {
    let one = "box1 sha256:f503023aa56288507310280d01f2529a 12.2 KiB, 2026-11-22T18:26:01.5Z: dir:/srv/b#1, 3 entries";
    assert_eq!(normal(one), "box1 sha256:DIGEST SIZE, TIME: DIRECTORY, 3 entries");
    assert_ne!(normal("@3 exit 0 1.0 KiB"), normal("@3 exit 3 1.0 KiB"));
}
