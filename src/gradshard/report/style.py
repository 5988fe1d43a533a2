"""The page's style sheet: one for phone, screen and paper, in light and dark."""

from typing import Final

STYLE: Final = """
:root { color-scheme: light dark; --bg: #ffffff; --card: #f6f8fa; --ink: #1f2328; --dim: #57606a;
  --edge: #d0d7de; --c0: #0969da; --c1: #bc4c00; --c2: #1a7f37; --c3: #8250df; --bad: #b62324;
  --warn: #7d4e00; --good: #1a7f37 }
@media (prefers-color-scheme: dark) { :root { --bg: #0d1117; --card: #161b22; --ink: #e6edf3;
  --dim: #9198a1; --edge: #30363d; --c0: #58a6ff; --c1: #f0883e; --c2: #3fb950; --c3: #bc8cff;
  --bad: #ff7b72; --warn: #e3b341; --good: #56d364 } }
* { box-sizing: border-box }
body { margin: 0 auto; max-width: 70rem; padding: 1rem clamp(.75rem, 3vw, 2rem) 3rem;
  background: var(--bg); color: var(--ink); font: 1rem/1.5 system-ui, sans-serif;
  overflow-wrap: anywhere; -webkit-text-size-adjust: 100% }
h1 { font-size: 1.6rem; line-height: 1.2; margin: .5rem 0 } h2 { font-size: 1.35rem; margin: 0 }
h3 { font-size: 1.05rem; margin: 2rem 0 .5rem }
a { color: var(--c0) } p { margin: .5rem 0; max-width: 46rem } .dim { color: var(--dim) }
small, .small { font-size: .875rem }
section.round { border-top: 1px solid var(--edge); margin-top: 2.5rem; padding-top: 1.5rem }
.head { display: flex; flex-wrap: wrap; align-items: center; gap: .25rem .75rem }
.state { border: 1px solid; border-radius: 1rem; padding: 0 .6rem; font-size: .875rem }
.completed { color: var(--good) } .failed { color: var(--bad) }
.awaiting, .aggregating { color: var(--warn) }
.cause { border-left: .25rem solid var(--bad); background: var(--card); padding: .5rem .75rem;
  margin: 1rem 0 }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(max(8.5rem, 22%), 1fr));
  gap: .5rem; margin: 1rem 0; padding: 0 }
.tiles div { background: var(--card); border-radius: .5rem; padding: .6rem .75rem }
.tiles dt { color: var(--dim); font-size: .8rem } .tiles dd { margin: 0; font-size: 1.15rem }
.tiles dd small { display: block; color: var(--dim); font-size: .8rem; line-height: 1.35 }
.pictures { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 24rem), 1fr));
  gap: 1rem 1.5rem }
figure { margin: .75rem 0; min-width: 0; break-inside: avoid }
figcaption { font-weight: 600; font-size: .9rem; margin-bottom: .6rem }
.plot { display: grid; grid-template-columns: 4rem 1fr; font-size: .75rem; color: var(--dim);
  margin-right: 1.25rem }
.plot svg { grid-column: 2; width: 100%; height: var(--height); overflow: visible;
  border-bottom: 1px solid var(--dim) }
.ys { position: relative; height: var(--height) }
.ys span { position: absolute; right: .5rem; transform: translateY(50%); white-space: nowrap }
.xs { grid-column: 2; position: relative; height: 1.6rem }
.xs span { position: absolute; top: .25rem; transform: translateX(-50%); white-space: nowrap }
.xs span.last { transform: translateX(-100%); left: calc(100% + 1.25rem) !important }
.plot.named { grid-template-columns: 14rem 1fr }
@media (max-width: 40rem) { .plot.named { grid-template-columns: 6.5rem 1fr } }
.plot.named .ys span { white-space: normal; left: 0; text-align: right; line-height: 1.2 }
.grid { stroke: var(--edge); vector-effect: non-scaling-stroke; fill: none }
.line { fill: none; stroke-width: 2px; vector-effect: non-scaling-stroke }
.dash { stroke-dasharray: 6 4 }
.dot { stroke-width: 8px; stroke-linecap: round; vector-effect: non-scaling-stroke; fill: none }
.c0 { --c: var(--c0) } .c1 { --c: var(--c1) } .c2 { --c: var(--c2) } .c3 { --c: var(--c3) }
.bad { --c: var(--bad) } .mute { --c: var(--dim) }
.line, .dot { stroke: var(--c) } .box, .cell { fill: var(--c) }
.legend { list-style: none; display: flex; flex-wrap: wrap; gap: .1rem 1rem; margin: .25rem 0 0;
  padding: 0 0 0 4rem; font-size: .8rem; color: var(--dim) }
.legend i { display: inline-block; width: .7rem; height: .7rem; border-radius: .15rem;
  background: var(--c); margin-right: .4rem }
.scroll { overflow-x: auto; max-width: 100%; margin-top: .75rem }
.scroll:focus-visible, summary:focus-visible, a:focus-visible { outline: 2px solid var(--c0) }
table { border-collapse: collapse; font-size: .875rem; font-variant-numeric: tabular-nums }
caption { text-align: left; font-weight: 600; padding: .25rem 0 }
th, td { text-align: left; vertical-align: top; padding: .25rem 1rem .25rem 0;
  border-bottom: 1px solid var(--edge); overflow-wrap: normal }
th { font-weight: 600 } thead th { color: var(--dim); vertical-align: bottom }
th.name, td.name { overflow-wrap: anywhere; min-width: 7rem }
td.number, th.number { text-align: right } td.number, td.time { white-space: nowrap }
figure + .scroll { margin-top: 1.25rem }
summary { cursor: pointer; padding: .35rem 0; color: var(--c0); font-size: .9rem }
details { margin: .25rem 0 }
@media print {
  :root { --bg: #ffffff; --card: #f6f8fa; --ink: #000000; --dim: #444444; --edge: #bbbbbb;
    --c0: #0969da; --c1: #bc4c00; --c2: #1a7f37; --c3: #8250df; --bad: #b62324; --good: #1a7f37;
    --warn: #7d4e00; color-scheme: light }
  body { max-width: none; font-size: 10pt; padding: 0 } nav { display: none }
  section.round { break-before: page; border: 0; margin: 0 } h2, h3 { break-after: avoid }
  tr, .tiles div, .cause { break-inside: avoid } .scroll { overflow: visible }
  * { print-color-adjust: exact; -webkit-print-color-adjust: exact }
}
"""
