# Makes a manual page of section 3 of what the header says, so that nothing is written twice:
#
#     awk -v title=TITLE -v about=TEXT -v sections=PATTERN [-v rules=1] [-v program=FILE] -v also=PAGES -v version=X.Y.Z \
#         -f page.awk tcpmig.h
#
# The page has the sections of the header whose titles match, the rules that hold for all functions if they are asked for, and the
# program, which is to be a complete one.

# As troff reads it: nothing in it is a request.
function escaped(line) {
    gsub(/\\/, "\\e", line)
    gsub(/-/, "\\-", line)
    if (line ~ /^[.']/) line = "\\&" line
    return line
}

function code(lines, count, font,   i) {
    print ".PP\n.RS 4\n.nf\n.ft " font
    for (i = 1; i <= count; i++) print escaped(lines[i])
    print ".ft R\n.fi\n.RE"
}

# A comment: paragraphs, lists, and what is indented stays as it is.
function text(lines, count,   i, line, quoted, quotes, fresh) {
    fresh = 1
    quotes = 0
    for (i = 1; i <= count + 1; i++) {
        line = lines[i]
        if (i <= count && line ~ /^    / && !(in_item && line !~ /^     /)) {
            quoted[++quotes] = substr(line, 5)
            continue
        }
        if (quotes) {
            code(quoted, quotes, "R")
            quotes = 0
            fresh = 1
        }
        if (i > count) break
        if (line ~ /^ *$/) {
            fresh = 1
            continue
        }
        if (sub(/^- /, "", line)) {
            print ".IP \\[u2022] 2"
            in_item = 1
        } else if (fresh && line !~ /^ /) {
            print ".PP"
            in_item = 0
        }
        sub(/^ +/, "", line)
        print escaped(line)
        fresh = 0
    }
    in_item = 0
}

function say(   i) {
    if (declared) code(declaration, declared, "B")
    if (declared && comments) print ".RS 8"
    if (comments) text(comment, comments)
    if (declared && comments) print ".RE"
    declared = comments = 0
}

# A line of a comment without its frame.
function bare(line) {
    sub(/^\/\* ?/, "", line)
    sub(/ *\*\/$/, "", line)
    sub(/^ \* ?/, "", line)
    return line
}

BEGIN {
    print ".\\\" Made of tcpmig.h."
    printf ".TH %s 3 \"\" \"tcpmig %s\" \"Library Functions Manual\"\n", toupper(title), version
    printf ".SH NAME\n%s \\- %s\n", title, escaped(about)
    print ".SH SYNOPSIS\n.nf\n\\fB#include <tcpmig.h>\\fR\n"
    print "cc \\fIprogram.c\\fR $(pkg\\-config \\-\\-cflags \\-\\-libs tcpmig)\n.fi\n.SH DESCRIPTION"
    wanted = rules
}

# The next section.
/^\/\* ---- / {
    if (wanted) say()
    declared = comments = 0
    heading = $0
    sub(/^\/\* ---- /, "", heading)
    sub(/ -+( \*\/)?$/, "", heading)
    wanted = heading ~ sections
    if (wanted && (rules || heading ~ /:/)) {
        short = heading
        sub(/^[^:]*: /, "", short)
        print ".SS " toupper(substr(short, 1, 1)) escaped(substr(short, 2))
    }
    in_comment = $0 !~ /\*\/$/
    opens = in_comment
    next
}

in_comment {
    if (wanted) comment[++comments] = bare($0)
    if ($0 ~ /\*\/$/) {
        in_comment = 0
        # The text of a section belongs to no declaration.
        if (opens && wanted) say()
        opens = 0
    }
    next
}

/^\/\*/ {
    if (wanted) say()
    # The first one of the header has its own name in front.
    if ($0 ~ /SPDX/) opens = 1
    else if (wanted) comment[++comments] = bare($0)
    in_comment = $0 !~ /\*\/$/
    next
}

# Not declarations.
/^#(ifndef|endif|include|ifdef)/ || /^(extern|}$)/ { next }
/^#define TCPMIG_H$/ { next }

/^$/ {
    if (wanted && (declared || !comments)) say()
    next
}

wanted { declaration[++declared] = $0 }

END {
    if (wanted) say()
    if (program != "") {
        print ".SH EXAMPLES\nA complete program:\n.PP\n.nf"
        while ((getline line < program) > 0) print escaped(line)
        print ".fi"
    }
    print ".SH SEE ALSO"
    count = split(also, pages, " ")
    for (i = 1; i <= count; i++) printf ".BR %s (3)%s\n", pages[i], i < count ? "," : ""
}
