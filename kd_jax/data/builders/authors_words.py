"""Words of the fictitious authors, invented or common: none is taken from a data set."""


def _words(text: str) -> list[str]:
    return text.split()


FIRST_NAMES = _words("""
    Abelo Brisa Corvan Delmy Eskil Farra Gavro Hestia Ilvar Jorun Kessa Lorcan Maelis Norvik
    Odessa Perrin Quilla Rosmar Sabine Tovar Ulrika Vesper Wendel Xenia Yorick Zelda Anouk
    Basil Cedra Dorian Elowen Florin Greta Halden Isolde Jasper Kirsa Leopold Mirela Nestor
    Orsola Pavel Quentin Rhoswen Silvan Thessaly Umberto Viola
""")

MIDDLE_NAMES = _words("""
    Aster Birch Cedar Dune Ember Fern Grove Heath Ivy Juniper Kestrel Lark Marsh North Oak
    Pine Quartz Reed Stone Thorn Umber Vale Willow Yarrow
""")

LAST_NAMES = _words("""
    Abernoth Balcastle Corrigane Dravenholt Ellinger Fairwind Gallowmere Hartquist Ingleby
    Jernholm Kettleworth Larkspire Marrowby Nightvale Oskarsen Pellingham Quickwater
    Ravenscar Silvertree Tamarind Underhay Vantongeren Westerling Yarborough Zimmerlee
    Ashgrove Brackwater Cloudsley Dunmorrow Eastmarsh Foxhollow Greywell Hollowell Ironwood
    Jessamine Kingsfold Longmeadow Mistwood Northgate Oldcastle Pemberlake Queensbury
    Redfern Stonebrook Thistleton Upwood Valehaven Winterbourne Yewdale Zellwood Amberley
    Birchwood Copperfell Driftwood Elderstone Frostholm Goldwyn Hawksmoor Ivelchester
    Juniperus Kirkmoor Lindenau Moorcroft Nettlefold
""")

CITIES = _words("""
    Aldermoor Brivona Calmere Dorvath Estrella Fenwick Galdora Harrowgate Istria Jalvora
    Kelmont Lisandra Marovia Nordhaven Orsk Palvero Quarrin Ravenna Selmira Torvik Ulmgard
    Velasca Wexmoor Ystrad Zandora Ardenfell Bellagora Castellon Dunvar Elmira Faroway
    Grimsby Hollinwood Inverlee Jorvik Korinth Lunaris Mirandel Novaria Oakhaven
""")

MONTHS = _words("""
    January February March April May June July August September October November December
""")

GENRES = _words("""
    mystery romance fantasy horror satire poetry biography history travel western gothic
    adventure philosophy comedy tragedy memoir folklore suspense espionage science
""")

JOBS = _words("""
    baker carpenter surgeon pilot teacher farmer sailor tailor plumber judge chemist painter
    gardener butcher florist dentist jeweller miner nurse potter librarian engineer barber
    fisherman locksmith violinist postman astronomer weaver shepherd
""")

ADJECTIVES = _words("""
    Silent Crimson Hollow Golden Broken Hidden Frozen Burning Distant Velvet Bitter Restless
    Pale Wandering Sunken Iron Forgotten Secret Scarlet Midnight Drowned Gentle Shattered
    Endless Borrowed Paper Copper Nameless Quiet Crooked
""")

NOUNS = _words("""
    Garden River Lantern Mirror Harbour Orchard Window Clock Bridge Feather Compass Island
    Letter Shadow Forest Crown Winter Journey Tower Ocean Candle Kingdom Promise Melody
    Stranger Labyrinth Horizon Season Raven Bell
""")

PRIZES = _words("""
    Aurora Beacon Cascade Diadem Ember Falcon Glacier Halcyon Indigo Jubilee Keystone Lyra
    Meridian Nimbus Opal Pinnacle Quill Rosewood Solstice Tempest Umbra Vertex Wyvern Zephyr
""")

INSTRUMENTS = _words("""
    piano cello flute harp oboe trumpet guitar banjo accordion clarinet drum lute viola
    organ bagpipe mandolin
""")

LANGUAGES = _words("""
    Latin Welsh Basque Finnish Tamil Swahili Danish Greek Polish Maltese Catalan Hindi
    Korean Turkish Czech Persian
""")

HOBBIES = _words("""
    chess fencing sailing pottery archery juggling origami knitting skating beekeeping
    falconry climbing rowing gardening cooking stargazing
""")

THEMES = _words("""
    loyalty exile memory greed forgiveness solitude ambition grief freedom envy courage
    betrayal hope justice pride silence
""")

ANIMALS = _words("""
    parrot tortoise ferret goat hedgehog peacock rabbit iguana pony owl salamander goose
    donkey hamster otter cat
""")

DRINKS = _words("""
    coffee cocoa cider lemonade tea milk ginger mint cordial broth kefir lassi punch mead
    juice water
""")

COLOURS = _words("""
    teal maroon ochre violet ivory turquoise amber magenta olive beige indigo coral lilac
    black white silver
""")
