//! Makes sure that what is embedded exists: the built page, or a line that says how to build it.

use std::{fs, io, path::Path};

fn main() -> io::Result<()> {
    println!("cargo:rerun-if-changed=../migrations");
    println!("cargo:rerun-if-changed=../web/dist");
    let page = Path::new("../web/dist");
    fs::create_dir_all(page)?;
    let index = page.join("index.html");
    if !index.exists() {
        fs::write(
            index,
            "<!doctype html>\n<html lang=\"en\">\n<meta charset=\"utf-8\">\n<title>temponas</title>\n\
             <h1>temponas</h1>\n<p>The coordinator runs; its page was not built. Build it with \
             <code>npm ci &amp;&amp; npm run build</code> in <code>web/</code>, then build the coordinator again.</p>\n\
             <p>The interface is described at <a href=\"/docs\">/docs</a>.</p>\n</html>\n",
        )?;
    }
    Ok(())
}
