"""The look of the HTML page: one column, wide tables that scroll, light and dark from the reader's own setting."""

CSS = """
:root { color-scheme: light dark; --ink: #1b1f24; --soft: #57606a; --paper: #ffffff; --card: #f4f6f8; --line: #d5dae0;
  --accent: #0059a3; --mark: #ffe08a; --mark-ink: #1b1f24; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e9ed; --soft: #a3acb8; --paper: #14171b; --card: #1f242a;
  --line: #3a424c; --accent: #7cc4ff; --mark: #6b5200; --mark-ink: #ffffff; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--paper); color: var(--ink); font: 16px/1.55 system-ui, sans-serif; }
main { max-width: 70rem; margin: 0 auto; padding: 2rem 1.25rem 4rem; }
h1 { font-size: 1.7rem; line-height: 1.25; margin: 0 0 1rem; overflow-wrap: anywhere; }
h2 { font-size: 1.3rem; margin: 3rem 0 1rem; border-top: 1px solid var(--line); padding-top: 1.5rem; }
h3 { font-size: 1.1rem; margin: 2.2rem 0 .5rem; }
.claims { background: var(--card); border-left: 4px solid var(--accent); border-radius: 4px; padding: .3rem 1.2rem; }
.claims p { margin: .7rem 0; max-width: 60rem; }
.claims p.under { margin: .25rem 0 .25rem 1.4rem; }
.table { overflow-x: auto; margin: 1.6rem 0; }
.tall { max-height: 40rem; overflow-y: auto; }
.table:focus-visible, summary:focus-visible { outline: 2px solid var(--accent); outline-offset: 2px; }
table { border-collapse: collapse; width: 100%; font-size: .88rem; font-variant-numeric: tabular-nums; }
caption { text-align: left; font-weight: 600; padding-bottom: .4rem; }
th, td { text-align: left; padding: .4rem .7rem .4rem 0; border-bottom: 1px solid var(--line); vertical-align: top; }
td { white-space: nowrap; }
td:has(.snippet) { white-space: normal; min-width: 24rem; }
tbody th { font-weight: 500; white-space: nowrap; }
thead th { color: var(--soft); font-weight: 600; position: sticky; top: 0; background: var(--paper); }
.snippet { margin-bottom: .3rem; overflow-wrap: anywhere; }
mark { background: var(--mark); color: var(--mark-ink); border-radius: 2px; padding: 0 .15em; }
.verdict .mark { font-weight: 600; white-space: nowrap; }
.verdict td:has(.snippet) { min-width: 11rem; }
.verdict .snippet { color: var(--soft); }
figure { margin: 1.8rem 0; }
figure img { max-width: 100%; height: auto; background: #ffffff; border-radius: 6px; padding: .5rem;
  border: 1px solid var(--line); }
figcaption { color: var(--soft); font-size: .9rem; margin-top: .3rem; }
dl { display: grid; grid-template-columns: repeat(auto-fill, minmax(17rem, 1fr)); gap: .3rem 1.5rem; font-size: .9rem; }
dl div { display: flex; gap: .6rem; justify-content: space-between; border-bottom: 1px solid var(--line); }
dt { color: var(--soft); }
dd { margin: 0; overflow-wrap: anywhere; text-align: right; }
details { margin: 1rem 0; }
summary { cursor: pointer; font-weight: 600; }
footer { margin-top: 3rem; color: var(--soft); font-size: .85rem; }
@media print { .tall { max-height: none; } }
"""
