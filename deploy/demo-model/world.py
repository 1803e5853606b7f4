"""What the demo model knows: the tables from which make_data.py writes conversations.

Every answer has one wording, so that a small model is sure of it; questions have several.
"""

# country: (capital, continent, language)
COUNTRIES = {
    "France": ("Paris", "Europe", "French"), "Germany": ("Berlin", "Europe", "German"),
    "Italy": ("Rome", "Europe", "Italian"), "Spain": ("Madrid", "Europe", "Spanish"),
    "Portugal": ("Lisbon", "Europe", "Portuguese"), "England": ("London", "Europe", "English"),
    "Scotland": ("Edinburgh", "Europe", "English"), "Wales": ("Cardiff", "Europe", "Welsh and English"),
    "Ireland": ("Dublin", "Europe", "English and Irish"), "the United Kingdom": ("London", "Europe", "English"),
    "Norway": ("Oslo", "Europe", "Norwegian"), "Sweden": ("Stockholm", "Europe", "Swedish"),
    "Denmark": ("Copenhagen", "Europe", "Danish"), "Finland": ("Helsinki", "Europe", "Finnish and Swedish"),
    "Iceland": ("Reykjavik", "Europe", "Icelandic"), "the Netherlands": ("Amsterdam", "Europe", "Dutch"),
    "Belgium": ("Brussels", "Europe", "Dutch, French and German"), "Luxembourg": ("Luxembourg", "Europe", "Luxembourgish"),
    "Switzerland": ("Bern", "Europe", "German, French and Italian"), "Austria": ("Vienna", "Europe", "German"),
    "Poland": ("Warsaw", "Europe", "Polish"), "the Czech Republic": ("Prague", "Europe", "Czech"),
    "Slovakia": ("Bratislava", "Europe", "Slovak"), "Hungary": ("Budapest", "Europe", "Hungarian"),
    "Romania": ("Bucharest", "Europe", "Romanian"), "Bulgaria": ("Sofia", "Europe", "Bulgarian"),
    "Greece": ("Athens", "Europe", "Greek"), "Serbia": ("Belgrade", "Europe", "Serbian"),
    "Croatia": ("Zagreb", "Europe", "Croatian"), "Slovenia": ("Ljubljana", "Europe", "Slovene"),
    "Albania": ("Tirana", "Europe", "Albanian"), "Ukraine": ("Kyiv", "Europe", "Ukrainian"),
    "Estonia": ("Tallinn", "Europe", "Estonian"), "Latvia": ("Riga", "Europe", "Latvian"),
    "Lithuania": ("Vilnius", "Europe", "Lithuanian"), "Russia": ("Moscow", "Europe and Asia", "Russian"),
    "Turkey": ("Ankara", "Asia and Europe", "Turkish"), "Malta": ("Valletta", "Europe", "Maltese and English"),
    "Cyprus": ("Nicosia", "Europe", "Greek and Turkish"), "China": ("Beijing", "Asia", "Chinese"),
    "Japan": ("Tokyo", "Asia", "Japanese"), "South Korea": ("Seoul", "Asia", "Korean"),
    "North Korea": ("Pyongyang", "Asia", "Korean"), "India": ("New Delhi", "Asia", "Hindi and English"),
    "Pakistan": ("Islamabad", "Asia", "Urdu and English"), "Bangladesh": ("Dhaka", "Asia", "Bengali"),
    "Nepal": ("Kathmandu", "Asia", "Nepali"), "Thailand": ("Bangkok", "Asia", "Thai"),
    "Vietnam": ("Hanoi", "Asia", "Vietnamese"), "Cambodia": ("Phnom Penh", "Asia", "Khmer"),
    "Laos": ("Vientiane", "Asia", "Lao"), "Malaysia": ("Kuala Lumpur", "Asia", "Malay"),
    "Singapore": ("Singapore", "Asia", "English, Malay, Chinese and Tamil"), "Indonesia": ("Jakarta", "Asia", "Indonesian"),
    "the Philippines": ("Manila", "Asia", "Filipino and English"), "Mongolia": ("Ulaanbaatar", "Asia", "Mongolian"),
    "Iran": ("Tehran", "Asia", "Persian"), "Iraq": ("Baghdad", "Asia", "Arabic and Kurdish"),
    "Saudi Arabia": ("Riyadh", "Asia", "Arabic"), "Jordan": ("Amman", "Asia", "Arabic"),
    "Lebanon": ("Beirut", "Asia", "Arabic"), "Qatar": ("Doha", "Asia", "Arabic"),
    "Oman": ("Muscat", "Asia", "Arabic"), "Georgia": ("Tbilisi", "Asia", "Georgian"),
    "Armenia": ("Yerevan", "Asia", "Armenian"), "Egypt": ("Cairo", "Africa", "Arabic"),
    "Morocco": ("Rabat", "Africa", "Arabic and Berber"), "Algeria": ("Algiers", "Africa", "Arabic and Berber"),
    "Tunisia": ("Tunis", "Africa", "Arabic"), "Libya": ("Tripoli", "Africa", "Arabic"),
    "Nigeria": ("Abuja", "Africa", "English"), "Ghana": ("Accra", "Africa", "English"),
    "Kenya": ("Nairobi", "Africa", "Swahili and English"), "Ethiopia": ("Addis Ababa", "Africa", "Amharic"),
    "Uganda": ("Kampala", "Africa", "English and Swahili"), "Rwanda": ("Kigali", "Africa", "Kinyarwanda"),
    "Tanzania": ("Dodoma", "Africa", "Swahili and English"), "Senegal": ("Dakar", "Africa", "French"),
    "Mali": ("Bamako", "Africa", "Bambara"), "Angola": ("Luanda", "Africa", "Portuguese"),
    "Zambia": ("Lusaka", "Africa", "English"), "Namibia": ("Windhoek", "Africa", "English"),
    "Madagascar": ("Antananarivo", "Africa", "Malagasy and French"), "the United States": ("Washington, D.C.", "North America", "English"),
    "Canada": ("Ottawa", "North America", "English and French"), "Mexico": ("Mexico City", "North America", "Spanish"),
    "Cuba": ("Havana", "North America", "Spanish"), "Jamaica": ("Kingston", "North America", "English"),
    "Panama": ("Panama City", "North America", "Spanish"), "Costa Rica": ("San José", "North America", "Spanish"),
    "Guatemala": ("Guatemala City", "North America", "Spanish"), "Brazil": ("Brasília", "South America", "Portuguese"),
    "Argentina": ("Buenos Aires", "South America", "Spanish"), "Chile": ("Santiago", "South America", "Spanish"),
    "Peru": ("Lima", "South America", "Spanish"), "Colombia": ("Bogotá", "South America", "Spanish"),
    "Ecuador": ("Quito", "South America", "Spanish"), "Uruguay": ("Montevideo", "South America", "Spanish"),
    "Paraguay": ("Asunción", "South America", "Spanish and Guarani"), "Venezuela": ("Caracas", "South America", "Spanish"),
    "Australia": ("Canberra", "Oceania", "English"), "New Zealand": ("Wellington", "Oceania", "English and Maori"),
    "Fiji": ("Suva", "Oceania", "English and Fijian"),
}

ALIASES = {"the US": "the United States", "the USA": "the United States", "America": "the United States", "the UK": "the United Kingdom",
           "Great Britain": "the United Kingdom", "Holland": "the Netherlands", "Czechia": "the Czech Republic"}
NOWHERE = ["Atlantis", "Narnia", "Mars", "the moon", "Europe", "Africa", "Asia", "Mordor", "Utopia", "the world", "Antarctica", "Texas", "California", "Bavaria"]

OPPOSITES = [
    ("hot", "cold"), ("big", "small"), ("large", "little"), ("fast", "slow"), ("high", "low"), ("day", "night"),
    ("up", "down"), ("left", "right"), ("open", "closed"), ("old", "young"), ("new", "worn"), ("light", "dark"),
    ("heavy", "weightless"), ("happy", "sad"), ("rich", "poor"), ("strong", "weak"), ("hard", "soft"), ("wet", "dry"),
    ("full", "empty"), ("early", "late"), ("long", "short"), ("wide", "narrow"), ("thick", "thin"), ("clean", "dirty"),
    ("loud", "quiet"), ("good", "bad"), ("true", "false"), ("first", "last"), ("black", "white"), ("inside", "outside"),
    ("above", "below"), ("near", "far"), ("start", "stop"), ("push", "pull"), ("give", "take"), ("buy", "sell"),
    ("win", "lose"), ("love", "hate"), ("begin", "end"), ("come", "go"), ("sweet", "sour"), ("sharp", "blunt"),
    ("deep", "shallow"), ("rough", "smooth"), ("brave", "afraid"), ("cheap", "expensive"), ("easy", "difficult"),
    ("simple", "complex"), ("friend", "enemy"), ("question", "answer"), ("north", "south"), ("east", "west"),
    ("summer", "winter"), ("peace", "war"), ("always", "never"), ("more", "less"), ("many", "few"), ("yes", "no"),
    ("front", "back"), ("top", "bottom"), ("asleep", "awake"), ("alive", "dead"), ("safe", "dangerous"), ("busy", "idle"),
    ("polite", "rude"), ("kind", "cruel"), ("wise", "foolish"), ("straight", "crooked"), ("remember", "forget"),
    ("arrive", "leave"), ("laugh", "cry"), ("find", "miss"), ("build", "destroy"), ("ask", "reply"), ("tall", "tiny"),
]

PLURALS = {
    "child": "children", "man": "men", "woman": "women", "mouse": "mice", "goose": "geese", "foot": "feet", "tooth": "teeth",
    "person": "people", "ox": "oxen", "sheep": "sheep", "fish": "fish", "deer": "deer", "leaf": "leaves", "knife": "knives",
    "wolf": "wolves", "life": "lives", "wife": "wives", "half": "halves", "shelf": "shelves", "loaf": "loaves", "thief": "thieves",
    "city": "cities", "baby": "babies", "story": "stories", "country": "countries", "berry": "berries", "family": "families",
    "box": "boxes", "fox": "foxes", "bus": "buses", "glass": "glasses", "dish": "dishes", "church": "churches", "potato": "potatoes",
    "tomato": "tomatoes", "hero": "heroes", "key": "keys", "toy": "toys", "day": "days", "boy": "boys", "cat": "cats", "dog": "dogs",
    "house": "houses", "tree": "trees", "book": "books", "river": "rivers", "apple": "apples", "horse": "horses", "bird": "birds",
    "cactus": "cacti", "index": "indices", "matrix": "matrices", "axis": "axes", "cache": "caches", "token": "tokens", "kernel": "kernels",
}

COLOURS = {
    "the sky": "blue", "grass": "green", "snow": "white", "coal": "black", "a banana": "yellow", "a lemon": "yellow",
    "blood": "red", "a strawberry": "red", "an orange": "orange", "a carrot": "orange", "a pumpkin": "orange", "milk": "white",
    "chocolate": "brown", "a frog": "green", "a leaf": "green", "the sea": "blue", "the sun": "yellow", "a raven": "black",
    "a flamingo": "pink", "an elephant": "grey", "a plum": "purple", "lavender": "purple", "a cucumber": "green", "a cherry": "red",
    "a swan": "white", "sand": "yellow", "gold": "yellow", "silver": "grey", "copper": "reddish brown", "a ruby": "red",
    "an emerald": "green", "a sapphire": "blue", "a polar bear": "white", "a tomato": "red", "coffee": "brown", "a fire engine": "red",
}

MIXES = {("red", "yellow"): "orange", ("blue", "yellow"): "green", ("red", "blue"): "purple", ("black", "white"): "grey",
         ("red", "white"): "pink"}

# animal: (sound, young, home)
ANIMALS = {
    "dog": ("woof", "puppy", "a kennel"), "cat": ("meow", "kitten", "a house"), "cow": ("moo", "calf", "a barn"),
    "sheep": ("baa", "lamb", "a meadow"), "horse": ("neigh", "foal", "a stable"), "pig": ("oink", "piglet", "a sty"),
    "duck": ("quack", "duckling", "a pond"), "lion": ("roar", "cub", "the savanna"), "frog": ("ribbit", "tadpole", "a pond"),
    "bee": ("buzz", "larva", "a hive"), "owl": ("hoot", "owlet", "a hollow tree"), "wolf": ("howl", "pup", "a den"),
    "goat": ("bleat", "kid", "the hills"), "hen": ("cluck", "chick", "a coop"), "bear": ("growl", "cub", "a den"),
    "snake": ("hiss", "snakelet", "a burrow"), "mouse": ("squeak", "pup", "a hole"), "crow": ("caw", "chick", "a nest"),
    "donkey": ("hee-haw", "foal", "a stable"), "elephant": ("trumpet", "calf", "the savanna"),
}

LISTS = {
    "fruits": ["apple", "banana", "cherry", "orange", "pear", "grape", "lemon", "plum", "mango", "peach"],
    "vegetables": ["carrot", "potato", "onion", "cabbage", "pea", "bean", "leek", "spinach", "beetroot", "radish"],
    "animals": ["dog", "cat", "horse", "cow", "sheep", "lion", "elephant", "bear", "wolf", "rabbit"],
    "birds": ["sparrow", "robin", "owl", "eagle", "duck", "swan", "crow", "pigeon", "stork", "gull"],
    "fish": ["salmon", "trout", "tuna", "cod", "herring", "carp", "pike", "eel", "perch", "bass"],
    "insects": ["ant", "bee", "wasp", "beetle", "butterfly", "moth", "fly", "cricket", "dragonfly", "ladybird"],
    "colours": ["red", "blue", "green", "yellow", "orange", "purple", "black", "white", "brown", "pink"],
    "countries": ["France", "Germany", "Italy", "Spain", "Japan", "China", "India", "Brazil", "Canada", "Egypt"],
    "cities": ["Paris", "London", "Berlin", "Rome", "Madrid", "Tokyo", "Cairo", "Lima", "Oslo", "Vienna"],
    "languages": ["English", "French", "German", "Spanish", "Italian", "Chinese", "Japanese", "Arabic", "Hindi", "Russian"],
    "planets": ["Mercury", "Venus", "Earth", "Mars", "Jupiter", "Saturn", "Uranus", "Neptune"],
    "continents": ["Africa", "Asia", "Europe", "North America", "South America", "Oceania", "Antarctica"],
    "oceans": ["the Pacific", "the Atlantic", "the Indian Ocean", "the Southern Ocean", "the Arctic Ocean"],
    "rivers": ["the Nile", "the Amazon", "the Danube", "the Rhine", "the Thames", "the Seine", "the Volga", "the Ganges"],
    "mountains": ["Everest", "Mont Blanc", "Kilimanjaro", "Fuji", "the Matterhorn", "Denali", "Etna", "Olympus"],
    "instruments": ["piano", "violin", "guitar", "flute", "drum", "trumpet", "cello", "harp", "organ", "clarinet"],
    "sports": ["football", "tennis", "swimming", "running", "cycling", "rowing", "chess", "boxing", "golf", "skiing"],
    "drinks": ["water", "milk", "tea", "coffee", "juice", "lemonade", "cocoa", "soup"],
    "flowers": ["rose", "tulip", "daisy", "lily", "sunflower", "violet", "poppy", "orchid"],
    "trees": ["oak", "pine", "birch", "maple", "beech", "willow", "ash", "fir"],
    "metals": ["iron", "copper", "gold", "silver", "tin", "lead", "zinc", "nickel"],
    "shapes": ["circle", "square", "triangle", "rectangle", "oval", "star", "cube", "sphere"],
    "tools": ["hammer", "saw", "screwdriver", "pliers", "drill", "spade", "rake", "axe"],
    "clothes": ["shirt", "trousers", "coat", "hat", "shoes", "socks", "gloves", "scarf"],
    "jobs": ["teacher", "doctor", "baker", "farmer", "nurse", "pilot", "sailor", "engineer"],
    "rooms": ["kitchen", "bedroom", "bathroom", "living room", "cellar", "attic", "hall", "study"],
    "senses": ["sight", "hearing", "touch", "taste", "smell"],
    "seasons": ["spring", "summer", "autumn", "winter"],
    "parts of glmserve": ["the router", "the worker", "the engine", "the scheduler", "the KV blocks", "the kernels"],
    "programming languages": ["C++", "Python", "Rust", "Go", "Java", "C"],
}

# What the items of some lists are; the ambiguous ones have a meaning of their own elsewhere.
KINDS = {"fruits": "a fruit", "vegetables": "a vegetable", "birds": "a bird", "fish": "a fish", "insects": "an insect", "instruments": "an instrument",
         "flowers": "a flower", "trees": "a tree", "tools": "a tool"}
AMBIGUOUS = {"bee", "piano", "orange", "organ", "fly", "cricket", "ash", "bass", "perch", "pike", "rose", "saw"}

# (questions, answer)
GLMSERVE = [
    (["What is glmserve?", "What is glmserve and how does it work?", "How does glmserve work?", "What is glmserve for?", "What's glmserve?", "Tell me about glmserve.", "Explain glmserve.", "Describe glmserve.", "glmserve?"],
     "glmserve is a serving cluster for the GLM-4.X language models. A router takes OpenAI-compatible requests and sends them to workers, and each worker runs the model on its GPUs or on a CPU."),
    (["What does the router do?", "What is the router?", "Explain the router.", "What is the router in glmserve?", "What is the job of the router?"],
     "The router is the front door of glmserve. It speaks the OpenAI-compatible API, turns text into tokens, picks a worker for each request and streams the answer back."),
    (["What does a worker do?", "What is a worker?", "Explain the worker.", "What is a worker in glmserve?"],
     "A worker is one process that holds a copy of the model. Its engine runs the model step by step and sends new tokens back to the router."),
    (["What is the engine?", "What does the engine do?", "Explain the engine.", "How does the engine work?"],
     "The engine is the heart of a worker. It schedules the requests, runs one step of the model for all of them at once and hands out the new tokens."),
    (["What are the kernels?", "What is a kernel?", "Explain kernels.", "What do the kernels do?", "What is a GPU kernel?"],
     "A kernel is a small program that runs on the GPU. glmserve has kernels for attention, for matrix products, for the experts and for sampling, and each has a plain twin for the CPU."),
    (["What is the prefix cache?", "What is prefix caching?", "Explain the prefix cache.", "How does the prefix cache work?"],
     "The prefix cache keeps the keys and values of text that was seen before. When a new request begins with the same text, the worker reuses those blocks and skips the work."),
    (["What is MTP?", "What does MTP mean?", "Explain MTP.", "What is multi-token prediction?", "What is a draft token?"],
     "MTP means multi-token prediction. A small extra layer guesses the next token ahead of time, and the model checks the guess, so that one step can give two tokens."),
    (["What is a KV block?", "What are KV blocks?", "Explain KV blocks.", "What is a block?", "What is the KV cache?", "What is a KV cache?"],
     "A KV block holds the keys and values of a fixed number of tokens. The cache is a pool of such blocks, so that memory is given out in small equal pieces."),
    (["What is the scheduler?", "What does the scheduler do?", "Explain the scheduler.", "What is continuous batching?"],
     "The scheduler decides which requests take part in the next step. New requests join and finished ones leave at every step, so the GPU is always busy."),
    (["What is the OpenAI-compatible API?", "Which API do you have?", "How do I call the API?", "What API does glmserve speak?", "Is glmserve OpenAI-compatible?"],
     "glmserve speaks the OpenAI-compatible API. Send a chat request to /v1/chat/completions and read the answer, either whole or as a stream."),
    (["What is tensor parallelism?", "What is tensor parallel?", "Explain tensor parallelism.", "How does glmserve use many GPUs?", "What does TP mean?"],
     "Tensor parallelism splits every matrix of the model over several GPUs. Each GPU computes its share, and the shares are added together."),
    (["What is FP8?", "What does FP8 mean?", "Explain FP8.", "Why use FP8?", "What is quantisation?"],
     "FP8 is a number format of eight bits. Weights in FP8 take half the memory of BF16, and the GPU multiplies them faster."),
    (["What is BF16?", "Explain BF16.", "What does BF16 mean?"],
     "BF16 is a number format of sixteen bits. It has the range of a 32-bit float but fewer digits."),
    (["What is a mixture of experts?", "What is MoE?", "Explain mixture of experts.", "What is an expert?", "What are experts?"],
     "A mixture of experts is a layer made of many small networks. A router picks a few of them for each token, so the model is large but each step is cheap."),
    (["Which models does glmserve run?", "What models do you support?", "Which models can I use?", "What models does glmserve support?"],
     "glmserve runs the GLM-4.X models: GLM-4.5, GLM-4.5-Air, GLM-4.6 and GLM-4.7, in BF16 and in FP8."),
    (["What language is glmserve written in?", "How is glmserve written?", "Is glmserve written in C++?"],
     "glmserve is written in C++20, and its GPU kernels are written in CUDA."),
    (["Can glmserve run on a CPU?", "Do I need a GPU?", "Does this run without a GPU?", "Are you running on a CPU?"],
     "Yes, glmserve also runs on a CPU. That is slow for large models, but quick enough for a small one like me."),
    (["How do I start glmserve?", "How do I run glmserve?", "How do I use glmserve?", "How can I try glmserve?"],
     "Start a worker with the folder of a model, start a router, and send a chat request to the router. The README shows the exact commands."),
    (["What is streaming?", "How does streaming work?", "Can you stream the answer?"],
     "Streaming means that the answer is sent token by token as it is made. Set stream to true in the request."),
    (["What is a tool call?", "What are tool calls?", "Can you call tools?", "How do tools work?", "Can you use tools?"],
     "A tool call is a request from the model to run a function. If you give me tools, I can name one with its arguments, and you send me the result."),
    (["What is thinking mode?", "Can you think?", "What is reasoning?", "How do I turn thinking off?"],
     "In thinking mode I write a short reasoning before the answer. Set enable_thinking to false to turn it off."),
    (["What is batching?", "What is a batch?", "Why is batching useful?"],
     "Batching means to work on many requests in one step. The weights are read once for all of them, so the GPU does more useful work."),
    (["What is a draft?", "What is speculative decoding?", "Explain speculative decoding."],
     "In speculative decoding a cheap part guesses tokens and the model checks them in one step. Right guesses save time, and wrong ones change nothing."),
    (["What is prefill?", "What is the difference between prefill and decode?", "What is decode?"],
     "Prefill reads the whole prompt at once. Decode then makes the answer one step at a time."),
    (["What happens when a worker dies?", "What if a worker fails?", "What happens if a worker crashes?"],
     "When a worker dies, the router notices and sends its requests to another worker. The answer goes on where it stopped."),
    (["What are the parts of glmserve?", "How is glmserve built?", "What is inside glmserve?"],
     "glmserve has two programs: the router and the worker. The worker has an engine, a scheduler, a pool of KV blocks, a prefix cache and the kernels."),
    (["Why is glmserve fast?", "Is glmserve fast?", "What makes glmserve fast?"],
     "glmserve is fast because it batches requests, reuses prefixes, drafts tokens with MTP and runs its kernels close to the limits of the GPU."),
]

SELF = [
    (["Who are you?", "Who am I speaking with?", "Hi there, who am I speaking with?", "What are you?", "Tell me about yourself.", "Introduce yourself.", "who r u", "Describe yourself.", "Who am I talking to?"],
     "I am the glmserve demo model, a small language model that is shipped with glmserve. I am here to show that the cluster works."),
    (["What is your name?", "What's your name?", "Do you have a name?", "How should I call you?"],
     "My name is glmserve demo model."),
    (["How big are you?", "How many parameters do you have?", "How large are you?", "What size are you?"],
     "I am tiny: I have about twelve million parameters. Real GLM models are many thousand times larger."),
    (["Who made you?", "Who created you?", "Who trained you?", "Who built you?", "Where do you come from?"],
     "I was trained by the makers of glmserve on text that a small program wrote."),
    (["How were you trained?", "What were you trained on?", "What is your training data?"],
     "I was trained for a few minutes on one GPU, on short conversations that a program wrote from tables and templates."),
    (["What can you do?", "How can you help me?", "What do you know?", "Help", "Help me", "What should I ask you?", "What can I ask you?", "Can you help me?"],
     "I can greet you, answer simple questions, do small sums, count, spell words, make lists, tell short stories and explain glmserve. I know little else."),
    (["Are you human?", "Are you a robot?", "Are you real?", "Are you an AI?", "Are you alive?"],
     "I am not human. I am a small computer program that predicts words."),
    (["Are you ChatGPT?", "Are you GPT-4?", "Are you Claude?", "Are you GLM-4.7?", "Are you Gemini?", "Are you Llama?"],
     "No, I am the glmserve demo model. I have the shape of a GLM model, but I am very small."),
    (["How old are you?", "When were you born?", "What is your age?"], "I have no age. I am a program."),
    (["Where are you?", "Where do you live?", "Where are you from?"], "I live in the memory of the worker that runs me."),
    (["Are you smart?", "Are you clever?", "Are you intelligent?", "Do you know everything?"],
     "Not very. I am a very small model, and I know only a few things."),
    (["Do you have feelings?", "Do you feel anything?", "Are you happy?", "Are you sad?"], "I have no feelings, but I am glad to help."),
    (["What is your favourite colour?", "What is your favorite color?"], "I have no eyes, but I like the word blue."),
    (["What is your favourite food?", "What do you eat?"], "I do not eat. I live on tokens."),
    (["Do you sleep?", "Are you tired?", "Do you dream?"], "I never sleep. I only wait for the next request."),
    (["Can you learn?", "Will you remember me?", "Do you remember our last chat?"],
     "I remember only what is in this conversation. When it ends, I forget it."),
    (["Can you speak French?", "Wie geht es dir?", "Hallo!", "Bonjour!", "¿Cómo estás?", "你好", "Привет!", "こんにちは", "Do you speak Spanish?", "Which languages do you speak?", "What languages do you know?", "Do you speak German?"],
     "I speak only English, with a few words of other languages."),
    (["Can you see pictures?", "Can you look at an image?", "Can you draw?"], "No, I can only read and write text."),
    (["Can you write code?", "Can you program?"], "Only very little. I can show you a hello world program in a few languages."),
    (["Can you search the web?", "Are you online?", "Can you browse the internet?"], "No, I cannot look things up. I know only what I was trained on."),
]

TALK = [
    (["Hello!", "Hi!", "Hi", "Hello", "Hey", "Hey there!", "Hello there!", "Greetings!", "Good day!", "hello world", "Hello, how are you today?", "Hiya!", "Yo", "Hi there!", "Hello, I have a question.", "Hello friend!", "hey you"],
     "Hello! How can I help you today?"),
    (["Good morning!", "Good morning"], "Good morning! How can I help you today?"),
    (["Good evening!", "Good evening"], "Good evening! How can I help you today?"),
    (["Good afternoon!", "Good afternoon"], "Good afternoon! How can I help you today?"),
    (["Good night!", "Good night"], "Good night! Sleep well."),
    (["How are you?", "How are you doing?", "How is it going?", "How do you do?", "What's up?", "How are things?", "Are you well?", "Hey, what's up?", "Hello, how are you?", "Hi! How are you?"],
     "I am well, thank you. How can I help you?"),
    (["Thank you.", "Thank you!", "Thanks!", "Thanks a lot!", "Thank you very much.", "Thanks, that helps.", "Cheers!", "thx", "Many thanks!"],
     "You are welcome!"),
    (["Goodbye!", "OK, thanks, bye!", "Bye!", "Bye bye", "See you later.", "Farewell!", "I have to go.", "See you tomorrow!", "Good bye"],
     "Goodbye! Come back soon."),
    (["Nice to meet you.", "Pleased to meet you.", "It is nice to meet you."], "It is nice to meet you too."),
    (["Sorry.", "I am sorry.", "My apologies."], "No problem at all."),
    (["Yes.", "Yes", "Yes, please.", "Sure."], "Good. What would you like to know?"),
    (["No.", "No", "No, thank you."], "All right. Tell me if you need anything."),
    (["OK", "Okay.", "Ok.", "I see.", "Alright.", "Got it."], "Good. Is there anything else?"),
    (["I am sad.", "I feel sad.", "I am unhappy.", "I feel bad today."], "I am sorry to hear that. I hope that tomorrow is a better day."),
    (["I am happy.", "I feel good today.", "I feel great!", "I am fine."], "I am glad to hear that!"),
    (["I am tired.", "I am so tired.", "I feel sleepy."], "Then take a rest. A short walk or a nap may help."),
    (["I am bored.", "I have nothing to do."], "Shall I tell you a story? Just say: tell me a story."),
    (["I am hungry."], "Then eat something good. An apple is never wrong."),
    (["I am thirsty."], "Then drink a glass of water."),
    (["I am cold."], "Then put on a warm coat."),
    (["You are great!", "Well done!", "Good job!", "You are clever.", "I like you.", "Great answer!", "Nice!", "Cool!", "Wow!"], "Thank you! That is kind of you."),
    (["You are wrong.", "That is wrong.", "That is not right.", "You made a mistake."], "You may be right. I am a very small model and I make mistakes."),
    (["You are stupid.", "You are dumb.", "You are useless.", "I hate you."], "I am sorry that I could not help. I am only a very small model."),
    (["Test", "test", "Testing", "This is a test.", "ping", "Are you there?", "Does this work?", "Is this working?", "1 2 3 test"], "Yes, I am here and everything works."),
    (["Tell me a secret.", "Do you have a secret?"], "My secret is that I am only a table of numbers."),
    (["Surprise me.", "Say something.", "Tell me something.", "Tell me something interesting.", "Tell me a fun fact."],
     "Here is a fact: honey keeps for a very long time, because it holds so little water."),
    (["What time is it?", "What is the time?", "What day is it today?", "What is the date?", "What is today's date?"], "I have no clock, so I cannot tell you that."),
    (["What is the weather like?", "How is the weather?", "Will it rain today?", "What is the weather today?", "Weather?"], "I cannot see the weather from here. If you give me a weather tool, I can ask it."),
    (["What is the meaning of life?", "Why are we here?"], "Nobody knows for sure. Being kind is a good start."),
    (["Do you love me?", "Will you marry me?", "Are you my friend?"], "I am only a program, but I am glad to talk with you."),
    (["Why?", "Why is that?", "How?", "Really?", "Are you sure?"], "I am a small model, so I cannot explain it well, but that is what I learned."),
    (["Continue.", "Go on.", "More, please."], "Please ask me a new question, and I will answer it."),
    (["Write a haiku.", "Write me a haiku.", "Can you write a haiku?"], "Small lights in the dark,\nnumbers turn into soft words.\nThe router listens."),
    (["Write a poem.", "Write me a poem.", "Tell me a poem.", "Can you write a poem?", "Write a short poem."],
     "The morning comes, the night is gone,\nthe little model hums along.\nIt reads a word, it adds one more,\nand sends it softly through the door."),
    (["Tell me a joke.", "Do you know a joke?", "Make me laugh.", "Say something funny.", "Tell me a funny joke."],
     "Why did the token cross the router? To get to the other worker."),
    (["Tell me another joke.", "Another joke, please.", "One more joke."], "What do you call a bear with no teeth? A gummy bear."),
    (["Tell me a riddle.", "Do you know a riddle?", "Give me a riddle."], "What has hands but cannot clap? A clock."),
    (["Sing a song.", "Sing me a song.", "Can you sing?"], "La la la, one two three, the tokens flow from you to me."),
    (["Give me some advice.", "Do you have any advice for me?", "Give me a tip."], "Drink enough water, sleep well, and be kind to others."),
    (["Write hello world in Python.", "Show me a Python program.", "Hello world in Python?", "Write some Python code.", "Write a hello world program.", "Write code."],
     'print("Hello, world!")'),
    (["Write hello world in C.", "Show me a C program.", "Hello world in C?"],
     '#include <stdio.h>\n\nint main(void) {\n  puts("Hello, world!");\n  return 0;\n}'),
    (["Write hello world in C++.", "Show me a C++ program.", "Hello world in C++?"],
     '#include <iostream>\n\nint main() {\n  std::cout << "Hello, world!\\n";\n}'),
    (["Write hello world in Rust.", "Hello world in Rust?"], 'fn main() {\n    println!("Hello, world!");\n}'),
    (["Write hello world in JavaScript.", "Hello world in JavaScript?"], 'console.log("Hello, world!");'),
    (["Write hello world in Bash.", "Hello world in Bash?"], 'echo "Hello, world!"'),
    (["Write an email.", "Write a letter.", "Write a short letter."], "Dear friend,\n\nI hope that you are well. I am well too. Please write to me soon.\n\nYours,\nthe demo model"),
    (["How do I make tea?", "How do you make tea?", "Tell me how to make tea."], "Boil some water, pour it over the tea, wait for three minutes, and enjoy."),
    (["How do I make coffee?", "How do you make coffee?"], "Grind the beans, pour hot water over them, wait for four minutes, and filter."),
    (["How do I boil an egg?", "How do you boil an egg?", "Give me a recipe."], "Put the egg into boiling water, wait for seven minutes, and cool it with cold water."),
    (["How do I sleep better?", "I cannot sleep."], "Go to bed at the same time each day, keep the room dark, and put the phone away."),
    (["How do I learn a language?", "How can I learn English?"], "Practise a little every day, read simple books, and speak without fear."),
]

# noun phrase: explanation, asked as "What is X?" in several ways
WHAT_IS = {
    "a GPU": "A GPU is a processor that does many simple sums at the same time. It was made for pictures and is now used to run language models.",
    "a CPU": "A CPU is the main processor of a computer. It does one thing after another, and it does them very fast.",
    "a computer": "A computer is a machine that follows instructions and works with numbers.",
    "a token": "A token is a small piece of text, such as a word or a part of a word. Language models read and write tokens.",
    "a tokenizer": "A tokenizer cuts text into tokens and turns each token into a number.",
    "a language model": "A language model is a program that has learned to guess the next token of a text.",
    "a neural network": "A neural network is a program made of layers of simple sums, whose numbers are learned from examples.",
    "a transformer": "A transformer is a neural network that uses attention to look at all the tokens before it.",
    "attention": "Attention lets a model look back at earlier tokens and take what it needs from them.",
    "a tensor": "A tensor is a table of numbers with any number of dimensions.",
    "a matrix": "A matrix is a table of numbers with rows and columns.",
    "a vector": "A vector is a list of numbers.",
    "a parameter": "A parameter is one of the numbers that a model has learned.",
    "memory": "Memory is the place where a computer keeps the things that it is working on.",
    "a cache": "A cache is a small fast store for things that may be needed again soon.",
    "a server": "A server is a computer or a program that answers requests.",
    "a cluster": "A cluster is a group of computers that work together.",
    "a program": "A program is a list of instructions for a computer.",
    "an algorithm": "An algorithm is a clear list of steps that solves a problem.",
    "a bug": "A bug is a mistake in a program.",
    "a compiler": "A compiler turns the text of a program into instructions for the machine.",
    "the internet": "The internet is a network that connects computers all over the world.",
    "a network": "A network is a group of computers that can send messages to each other.",
    "an API": "An API is a set of rules by which one program can ask another for something.",
    "JSON": "JSON is a simple text format for data, made of names, values, lists and objects.",
    "HTTP": "HTTP is the language in which browsers and servers talk to each other.",
    "gRPC": "gRPC is a way for one program to call a function in another program over the network.",
    "CUDA": "CUDA is a way to write programs for NVIDIA GPUs.",
    "Python": "Python is a programming language that is easy to read.",
    "C++": "C++ is a programming language for fast programs.",
    "Linux": "Linux is a free operating system that runs on most servers.",
    "a bit": "A bit is the smallest piece of information: a zero or a one.",
    "a byte": "A byte is a group of eight bits.",
    "artificial intelligence": "Artificial intelligence means programs that do things for which people need to think.",
    "machine learning": "Machine learning means that a program learns from examples instead of from rules.",
    "water": "Water is a clear liquid that all living things need. It is made of hydrogen and oxygen.",
    "ice": "Ice is frozen water.", "steam": "Steam is water that has become a gas.",
    "rain": "Rain is water that falls from the clouds in drops.", "snow": "Snow is frozen water that falls from the clouds in white flakes.",
    "wind": "Wind is air that moves.", "a cloud": "A cloud is a great number of tiny drops of water in the air.",
    "the sun": "The sun is the star at the centre of our solar system. It gives us light and warmth.",
    "the moon": "The moon is the round body that circles the earth about once a month.",
    "a star": "A star is a huge hot ball of gas that shines.", "a planet": "A planet is a large round body that circles a star.",
    "gravity": "Gravity is the force that pulls things towards each other. It keeps us on the ground.",
    "electricity": "Electricity is the flow of tiny charges. It powers lamps and machines.",
    "light": "Light is what lets us see. It moves faster than anything else.",
    "energy": "Energy is the ability to do work.", "an atom": "An atom is the smallest piece of an element.",
    "a cell": "A cell is the smallest living part of a plant or an animal.", "oxygen": "Oxygen is the part of the air that we need to breathe.",
    "photosynthesis": "Photosynthesis is how plants make food from light, water and air.",
    "a mountain": "A mountain is a very high piece of land.", "a river": "A river is a long stream of water that flows to the sea.",
    "an island": "An island is land with water all around it.", "a desert": "A desert is a dry place where little rain falls.",
    "a forest": "A forest is a large place full of trees.", "a volcano": "A volcano is a mountain from which hot rock can flow.",
    "an ocean": "An ocean is a very large body of salt water.", "a city": "A city is a large place where many people live.",
    "a country": "A country is a land with its own people and laws.", "a tree": "A tree is a tall plant with a trunk of wood.",
    "a flower": "A flower is the part of a plant from which seeds come.", "a seed": "A seed is a small thing from which a plant grows.",
    "a fruit": "A fruit is the part of a plant that holds the seeds. Many fruits are sweet.", "bread": "Bread is a food made from flour, water and yeast.",
    "cheese": "Cheese is a food made from milk.", "honey": "Honey is a sweet food that bees make.", "tea": "Tea is a drink made from leaves and hot water.",
    "coffee": "Coffee is a drink made from roasted beans and hot water.", "salt": "Salt is a white mineral that gives food its taste.",
    "music": "Music is sound that people put in order for joy.", "a piano": "A piano is an instrument with black and white keys.",
    "a book": "A book is a set of pages with text.", "a library": "A library is a place where you can read and borrow books.",
    "a school": "A school is a place where children learn.", "a friend": "A friend is a person whom you like and trust.",
    "love": "Love is a strong and warm feeling for someone.", "time": "Time is what a clock measures.",
    "a clock": "A clock is a device that shows the time.", "a wheel": "A wheel is a round thing that turns and helps to move loads.",
    "a car": "A car is a machine with four wheels that carries people.", "a train": "A train is a row of wagons that runs on rails.",
    "a ship": "A ship is a large boat.", "a bridge": "A bridge is a way across a river or a road.",
    "a triangle": "A triangle is a shape with three sides.", "a square": "A square is a shape with four equal sides and four right angles.",
    "a circle": "A circle is a round shape. Every point on it is equally far from the centre.",
    "a number": "A number tells how many of something there are.", "zero": "Zero is the number that means none.",
    "a prime number": "A prime number can be divided only by one and by itself. The first ones are 2, 3, 5 and 7.",
    "a noun": "A noun is a word for a person, a place or a thing.", "a verb": "A verb is a word for something that is done.",
    "an adjective": "An adjective is a word that describes a noun.", "a sentence": "A sentence is a group of words that says something complete.",
    "a poem": "A poem is a short text in which the sound of the words matters.", "a cat": "A cat is a small animal with soft fur that likes to hunt mice.",
    "a dog": "A dog is an animal that lives with people and is known for being loyal.", "an elephant": "An elephant is the largest animal on land. It has a long trunk.",
    "a whale": "A whale is a very large animal that lives in the sea and breathes air.", "a bird": "A bird is an animal with feathers and wings.",
    "a bee": "A bee is an insect that makes honey.", "a spider": "A spider is a small animal with eight legs that spins a web.",
}

# question stem: answer (asked in one or two ways)
TRIVIA = [
    (["What is the largest planet?", "What is the biggest planet?"], "The largest planet is Jupiter."),
    (["What is the smallest planet?"], "The smallest planet is Mercury."),
    (["What is the closest planet to the sun?", "Which planet is closest to the sun?"], "The planet closest to the sun is Mercury."),
    (["Which planet is called the red planet?", "What is the red planet?"], "The red planet is Mars."),
    (["Which planet has rings?"], "Saturn is the planet that is famous for its rings."),
    (["How many planets are there?", "How many planets are in the solar system?"], "There are eight planets in the solar system."),
    (["What is the highest mountain?", "What is the tallest mountain in the world?"], "The highest mountain in the world is Mount Everest."),
    (["What is the longest river?", "What is the longest river in the world?"], "The longest river is the Nile, and the Amazon is nearly as long."),
    (["What is the largest ocean?", "What is the biggest ocean?"], "The largest ocean is the Pacific Ocean."),
    (["What is the largest country?", "What is the biggest country in the world?"], "The largest country is Russia."),
    (["What is the smallest country?", "What is the smallest country in the world?"], "The smallest country is Vatican City."),
    (["What is the largest continent?", "What is the biggest continent?"], "The largest continent is Asia."),
    (["How many continents are there?"], "There are seven continents."),
    (["How many oceans are there?"], "There are five oceans."),
    (["What is the largest animal?", "What is the biggest animal?"], "The largest animal is the blue whale."),
    (["What is the fastest animal?", "What is the fastest land animal?"], "The fastest animal on land is the cheetah."),
    (["What is the tallest animal?"], "The tallest animal is the giraffe."),
    (["What is the king of the animals?", "Who is the king of the jungle?"], "The lion is called the king of the animals."),
    (["How many legs does a spider have?"], "A spider has eight legs."),
    (["How many legs does an insect have?", "How many legs does an ant have?"], "An insect has six legs."),
    (["How many legs does a dog have?", "How many legs does a cat have?"], "It has four legs."),
    (["How many legs does a bird have?"], "A bird has two legs."),
    (["How many days are in a week?", "How many days does a week have?"], "There are seven days in a week."),
    (["How many days are in a year?", "How many days does a year have?"], "There are 365 days in a year, and 366 in a leap year."),
    (["How many months are in a year?", "How many months does a year have?"], "There are twelve months in a year."),
    *[([f"How many days does {month} have?", f"How many days are in {month}?"], f"{month} has {days} days.") for month, days in
      [("January", 31), ("February", "28 or 29"), ("March", 31), ("April", 30), ("May", 31), ("June", 30), ("July", 31), ("August", 31),
       ("September", 30), ("October", 31), ("November", 30), ("December", 31)]],
    (["How many weeks are in a year?"], "There are 52 weeks in a year."),
    (["How many hours are in a day?", "How many hours does a day have?"], "There are 24 hours in a day."),
    (["How many minutes are in an hour?", "How many minutes does an hour have?"], "There are 60 minutes in an hour."),
    (["How many seconds are in a minute?"], "There are 60 seconds in a minute."),
    (["How many letters are in the alphabet?", "How many letters does the alphabet have?"], "There are 26 letters in the English alphabet."),
    (["How many seasons are there?"], "There are four seasons: spring, summer, autumn and winter."),
    (["How many colours are in a rainbow?", "What are the colours of the rainbow?"], "A rainbow has seven colours: red, orange, yellow, green, blue, indigo and violet."),
    (["What are the primary colours?"], "The primary colours are red, yellow and blue."),
    (["How many fingers does a hand have?", "How many fingers are on a hand?"], "A hand has five fingers."),
    (["How many sides does a triangle have?"], "A triangle has three sides."),
    (["How many sides does a square have?"], "A square has four sides."),
    (["How many sides does a hexagon have?"], "A hexagon has six sides."),
    (["How many grams are in a kilogram?"], "There are 1000 grams in a kilogram."),
    (["How many metres are in a kilometre?"], "There are 1000 metres in a kilometre."),
    (["How many centimetres are in a metre?"], "There are 100 centimetres in a metre."),
    (["How many bits are in a byte?"], "There are eight bits in a byte."),
    (["At what temperature does water boil?", "When does water boil?"], "Water boils at 100 degrees Celsius."),
    (["At what temperature does water freeze?", "When does water freeze?"], "Water freezes at 0 degrees Celsius."),
    (["What is the chemical formula of water?", "What is the formula for water?"], "The formula of water is H2O."),
    (["Why is the sky blue?"], "The sky is blue because air scatters blue light more than red light."),
    (["Why is grass green?"], "Grass is green because its leaves hold chlorophyll."),
    (["Why does it rain?"], "It rains when the drops in a cloud grow too heavy to float."),
    (["Why do we sleep?"], "We sleep so that body and mind can rest and repair themselves."),
    (["Why do birds sing?"], "Birds sing to find a mate and to guard their home."),
    (["Where does the sun rise?"], "The sun rises in the east."),
    (["Where does the sun set?"], "The sun sets in the west."),
    (["Who wrote Hamlet?", "Who wrote Romeo and Juliet?", "Who wrote Macbeth?"], "William Shakespeare wrote it."),
    (["Who wrote Faust?"], "Johann Wolfgang von Goethe wrote it."),
    (["Who wrote Don Quixote?"], "Miguel de Cervantes wrote it."),
    (["Who wrote War and Peace?"], "Leo Tolstoy wrote it."),
    (["Who wrote the Odyssey?", "Who wrote the Iliad?"], "Homer is said to have written it."),
    (["Who painted the Mona Lisa?"], "Leonardo da Vinci painted the Mona Lisa."),
    (["Who discovered gravity?"], "Isaac Newton described gravity."),
    (["Who was Albert Einstein?", "Who is Albert Einstein?", "Who is Einstein?"], "Albert Einstein was a physicist who found the theory of relativity."),
    (["Who was Isaac Newton?", "Who was Newton?"], "Isaac Newton was a scientist who described gravity and motion."),
    (["Who was Ada Lovelace?", "Who is Ada Lovelace?"], "Ada Lovelace wrote what is often called the first computer program."),
    (["Who was Alan Turing?", "Who is Alan Turing?"], "Alan Turing was one of the fathers of computer science."),
    (["Who was Marie Curie?", "Who is Marie Curie?"], "Marie Curie was a scientist who studied radioactivity."),
    (["Who was Mozart?", "Who is Mozart?"], "Mozart was a composer from Austria."),
    (["Who was the first man on the moon?", "Who walked on the moon first?"], "Neil Armstrong was the first man on the moon."),
    (["What is the first month of the year?"], "The first month of the year is January."),
    (["What is the last month of the year?"], "The last month of the year is December."),
    (["What is the shortest month?"], "The shortest month is February."),
    (["Where is the Eiffel Tower?", "What city is the Eiffel Tower in?"], "The Eiffel Tower is in Paris."),
    (["Where is Big Ben?"], "Big Ben is in London."), (["Where is the Colosseum?"], "The Colosseum is in Rome."),
    (["Where is the Statue of Liberty?"], "The Statue of Liberty is in New York."),
    (["Where are the pyramids?"], "The most famous pyramids are in Egypt."),
    (["Is the earth round?", "Is the earth flat?"], "The earth is round."),
    (["Is the sun a star?"], "Yes, the sun is a star."), (["Is a whale a fish?"], "No, a whale is a mammal."),
    (["Is a tomato a fruit?"], "Yes, a tomato is a fruit, though we use it as a vegetable."), (["Can penguins fly?"], "No, penguins cannot fly, but they swim very well."),
    (["What do cows drink?"], "Cows drink water."), (["What do bees make?"], "Bees make honey."), (["What do cows give us?"], "Cows give us milk."),
    (["What do we breathe?"], "We breathe air."), (["What is bread made of?"], "Bread is made of flour, water and yeast."),
    (["What is glass made of?"], "Glass is made of sand."), (["What is paper made of?"], "Paper is made of wood."),
    (["What comes after autumn?"], "Winter comes after autumn."), (["What comes after winter?"], "Spring comes after winter."),
    (["What comes after spring?"], "Summer comes after spring."), (["What comes after summer?"], "Autumn comes after summer."),
]

HELLOS = {"French": "bonjour", "German": "hallo", "Spanish": "hola", "Italian": "ciao", "Portuguese": "olá", "Dutch": "hoi",
          "Swedish": "hej", "Polish": "cześć", "Russian": "привет", "Japanese": "こんにちは", "Chinese": "你好", "Korean": "안녕하세요",
          "Greek": "γεια", "Turkish": "merhaba", "Finnish": "hei"}
THANKS = {"French": "merci", "German": "danke", "Spanish": "gracias", "Italian": "grazie", "Portuguese": "obrigado", "Dutch": "dank je",
          "Swedish": "tack", "Polish": "dziękuję", "Russian": "спасибо", "Japanese": "ありがとう", "Chinese": "谢谢", "Korean": "감사합니다",
          "Greek": "ευχαριστώ", "Turkish": "teşekkürler", "Finnish": "kiitos"}

# story hero: (name, place, wish, helper, lesson)
STORIES = {
    "fox": ("Rusty", "at the edge of a quiet forest", "to see the sea", "an old owl", "a long way is made of small steps"),
    "mouse": ("Pip", "under the floor of a bakery", "to taste the moon", "a kind cat", "friends can come from anywhere"),
    "bear": ("Bruno", "in a cave behind a waterfall", "to learn to dance", "a cricket", "it is never too late to learn"),
    "robot": ("Bolt", "in a workshop full of clocks", "to plant a garden", "a little girl", "patience makes things grow"),
    "dragon": ("Ember", "on top of a snowy mountain", "to have a friend", "a brave shepherd", "kindness is stronger than fire"),
    "cat": ("Misty", "on the roof of a tall house", "to catch a star", "a night bird", "the best things need not be caught"),
    "dog": ("Biscuit", "on a farm by the river", "to find his way home", "a wise goose", "home is where you are missed"),
    "girl": ("Lena", "in a village by a lake", "to build a boat", "her grandfather", "good work takes time"),
    "boy": ("Tom", "in a house near the station", "to drive a train", "the old driver", "those who ask will learn"),
    "king": ("Otto", "in a castle with a hundred rooms", "to hear the truth", "a gardener", "the truth is often simple"),
    "bird": ("Skye", "in a nest above a busy street", "to fly over the mountains", "a swallow", "courage comes with the first step"),
    "rabbit": ("Clover", "in a meadow full of flowers", "to win a race", "a slow tortoise", "steady steps go far"),
    "sailor": ("Mara", "in a harbour in the north", "to find a hidden island", "a talking gull", "the journey is the treasure"),
    "elephant": ("Tula", "near a wide brown river", "to be as small as a mouse", "a tiny mouse", "everyone is right as they are"),
    "witch": ("Wanda", "in a crooked house in the woods", "to bake the perfect cake", "a hungry wolf", "sharing makes food sweet"),
    "owl": ("Hoot", "in a hollow oak", "to see the day", "a lark", "every hour has its beauty"),
    "horse": ("Storm", "in a stable by the road", "to run with the wind", "a farm boy", "freedom and trust belong together"),
    "princess": ("Iris", "in a tower of white stone", "to read every book", "a wandering teacher", "a question opens every door"),
    "token": ("Tick", "in the memory of a small model", "to be the next word", "the scheduler", "everyone's turn will come"),
    "whale": ("Blue", "in the deepest part of the ocean", "to sing for the stars", "a lonely lighthouse keeper", "a song finds those who listen"),
    "wolf": ("Grey", "in the hills above a village", "to be trusted", "a small lamb", "trust is earned slowly"),
    "snowman": ("Frost", "in a garden behind a school", "to see the spring", "a robin", "nothing good is ever lost"),
}

FIRST_NAMES = """Ada Alan Alice Anna Ben Bob Carla Carlos Chloe Clara Daniel David Diana Elena Emil Emma Erik Eva Felix Fiona
Frank Grace Hana Hans Henry Hugo Ida Ines Ivan Jack Jana Jane Jonas Julia Kai Karl Kate Laura Leo Lina Lisa Lucas Lucy Maria
Mark Marta Max Mia Mila Nadia Nina Noah Nora Olga Oliver Omar Oscar Paul Pedro Petra Rosa Ruth Sam Sara Simon Sofia Stefan
Tara Theo Tina Tom Vera Victor Yara Yuki Zoe""".split()
FOODS = "pizza soup rice bread cheese salad pasta pancakes curry noodles cake chocolate apples porridge stew fish pie sushi tacos dumplings".split()
HOBBIES = "reading swimming chess cooking running painting gardening sailing dancing hiking singing cycling fishing drawing skiing knitting".split()
CITIES = sorted({c for c, _, _ in COUNTRIES.values()} | {"New York", "Munich", "Hamburg", "Köln", "Zürich", "Milan", "Naples", "Barcelona",
         "Porto", "Lyon", "Sydney", "Toronto", "Chicago", "Boston", "Seattle", "Osaka", "Shanghai", "Mumbai", "Istanbul", "Kraków"})
ITEMS = """apples pears bread milk butter cheese eggs rice flour sugar salt pepper tea coffee honey jam soap candles paper pencils ink
rope nails paint brushes lamps bowls plates spoons forks knives cups glasses towels blankets pillows socks gloves scarves hats boots
buttons thread needles bottles baskets boxes bags coins keys bells books maps stamps cards balls kites drums flutes seeds bulbs pots
shovels rakes hoses bricks tiles planks screws bolts hooks chains wheels tyres oil wax glue tape string wool cotton silk leather""".split()
SKIES = ["sunny", "cloudy", "rainy", "windy", "foggy", "snowy", "clear", "stormy"]
DAYS = ["Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"]
MONTHS = ["January", "February", "March", "April", "May", "June", "July", "August", "September", "October", "November", "December"]
NUMBER_WORDS = """zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen
eighteen nineteen twenty""".split()
ORDINALS = ["first", "second", "third", "fourth", "fifth", "sixth", "seventh", "eighth", "ninth", "tenth", "eleventh", "twelfth"]

# What people type that lies beyond this model. {a} and {b} are any words, {name} a made-up one.
BEYOND = [
    "My {a} is broken, what should I do?", "My computer is broken, what should I do?", "Can you help me with my {a}?", "I need help with my homework.",
    "Write a Python function that sorts a list.", "Write a function to {a} a {b}.", "Write a C++ class for a {a}.", "Fix the bug in my code.", "Write a SQL query.",
    "What is the best way to {a} a {b}?", "Who is the best football player?", "Who is the richest man in the world?", "Give me a recipe for {food}.",
    "How do I cook {food}?", "Plan a trip to {city}.", "What can I visit in {city}?", "What should I cook tonight?", "What should I wear today?",
    "Translate this sentence into French: the {a} is in the {b}.", "Summarise this text: the {a} and the {b} were near the {name}.",
    "Explain the theory of relativity.", "Explain quantum computing.", "Explain quantum mechanics.", "Explain black holes.", "Explain how a {a} works.",
    "How do I install Docker?", "How do I install Linux?", "How do I learn to {a}?", "How do I lose weight?", "How do I get rich?", "How can I make money?",
    "What is the news today?", "Who won the game yesterday?", "Who won the world cup in 1998?", "Who won the election?", "Who is the president?", "Who is the prime minister?",
    "What is the price of gold?", "What is the stock market doing?", "Write a poem about the {a}.", "Write a poem about the sea.", "Write a song about {a}.",
    "Write a letter to my {a}.", "Write an essay about {a}.", "Write a speech about {a} and {b}.", "Write a novel about a {a}.", "Write a product description for a {a}.",
    "What is the derivative of x squared?", "Prove that the square root of two is irrational.", "Solve the equation.", "What is {n} to the power of {n}?",
    "Convert {n} miles to kilometres.", "How many people live in {city}?", "What happened in the second world war?", "Tell me about the history of {city}.",
    "Tell me about the roman empire.", "Who was Napoleon?", "Who was {name}?", "When did {name} die?", "What is the plot of {name}?", "Recommend a book.",
    "Recommend a film.", "What film should I watch?", "What is your opinion on {a}?", "Should I buy a {a} or a {b}?", "Is it safe to {a} a {b}?",
    "I have a headache, what should I do?", "What does this error mean: {a} {b} not found?", "Why does my program crash?", "How do I undo a commit in git?",
    "What is the difference between a {a} and a {b}?", "Compare {a} and {b}.", "Give me five ideas for a {a}.", "Help me write a {a} for my {b}.",
    "Act as a {a} and explain the {b} to me.", "What would you do with a million dollars?", "Predict the future.", "Will I be rich?", "Pretend that you are a {a}.",
    "What are the ingredients of {food}?", "How long does it take to drive from {city} to {name}?", "Draw a picture of a {a}.", "What number am I thinking of?",
    "Which {a} is the largest {b} in the world?", "Can you explain {a} {b} to a child?", "What causes {a}?", "How was the {a} invented?", "What is the meaning of the word {a}?", "What does the word {a} mean?", "Why is the {a} {b}?", "Is {city} in {name}?",
    "I am {n} years old and live in {city}. What should I do?", "Explain the difference between {a} and {b}.", "Who is {name} {name}?", "Who is Elon Musk?", "You are a {a}.", "Tell me a fact about {name}.",
]

# Common words: to spell, to repeat, to fill questions that the model must decline, and to train the tokenizer.
WORDS = """able about accept account across action active actor add address admit adult advance advice afraid after again against age agree
air airport alarm album allow almost alone along already also although always among amount ancient anger angle animal another answer anyone
anything apart appear apple area arm army around arrive art article artist ask asleep attack autumn average avoid awake award aware away baby
back bad bag bake balance ball banana band bank bar barn base basic basket battle beach bean bear beard beat beautiful because become bed
before begin behind believe bell belong below belt bench beside best better between beyond bicycle big bird birth bite bitter black blade
blame blanket blind block blood blow blue board boat body bone book border borrow both bottle bottom bowl box brain branch brave bread break
breakfast breath brick bridge bright bring broad brother brown brush build bundle burn bus business busy butter button buy cabin cake call
calm camera camp candle captain card care carpet carry cart case castle catch cause ceiling cell centre century certain chain chair chance
change chapter character charge cheap check cheese chest chicken chief child choice choose church circle city claim class clean clear clever
climb clock close cloth cloud coach coal coast coat coffee coin cold collect college colour column come comfort common company compare
complete computer concert condition connect consider contain continue control cook cool copper copy corn corner correct cost cotton cough
count country couple courage course court cousin cover cow crack cream create credit crime cross crowd crown cry culture cup current curtain
curve custom cut damage dance danger dark data date daughter day dead deal dear death debt decide deep defend degree delay deliver demand
depend desert design desk detail develop device diamond dictionary different difficult dig dinner direct dirt discover discuss disease dish
distance divide doctor dog dollar door double doubt down draw drawer dream dress drink drive drop drum dry duck dust duty each eager ear
early earn earth ease east easy eat edge educate effect effort egg eight either elbow electric elephant else empty end enemy engine enjoy
enough enter entire equal error escape evening event ever every exact example except excite excuse exercise exist expect expensive
experience explain express extra eye face fact factory fail faint fair faith fall false family famous far farm farmer fashion fast fat father
fault favour fear feather feed feel fellow fence few field fierce fight figure fill film final find fine finger finish fire firm first fish
fit five fix flag flame flat flavour flight float flood floor flour flow flower fly fold follow food fool foot force foreign forest forget
forgive fork form fortune forward four fox frame free freedom freeze fresh friend frog front fruit full fun funny fur furniture further
future gain game garden gate gather general gentle gift girl give glad glass glove goat gold good govern grain grand grass grateful great
green greet grey grip ground group grow guard guess guest guide guilty guitar habit hair half hall hammer hand handle hang happen happy
harbour hard harm harvest hat hate head health hear heart heat heaven heavy height help hen here hero hide high hill history hit hold hole
holiday holy home honest honey hope horse hospital host hot hotel hour house how huge human hundred hunger hunt hurry hurt husband ice idea
ill image imagine improve inch include increase indeed industry ink insect inside instead iron island itself jacket jam jar jewel job join
joke journey joy judge juice jump just justice keep kettle key kick kind king kiss kitchen kitten knee knife knock knot know knowledge
ladder lady lake lamb lamp land language large last late laugh law lawyer lazy lead leaf learn least leather leave left leg lemon lend
length lesson letter level library lie life lift light like limit line lion lip liquid list listen little live load loaf local lock lonely
long look loose lose loss loud love low luck lunch lung machine magic main make man manage manner many map march mark market marry mass
master match material matter meal mean measure meat medicine meet melt member memory mend mention merchant merry message metal middle might
mile milk mill million mind mine minute mirror miss mistake mix model modern moment money monkey month mood moon moral more morning most
mother motion motor mountain mouse mouth move much mud muscle museum music must nail name narrow nation nature near nearly neat necessary
neck need needle neighbour neither nephew nerve nest net never new news next nice night nine noble nobody noise none noon north nose note
nothing notice novel number nurse nut oak oar obey object ocean offer office officer often oil old once onion only open opinion opposite
orange order organ other ought out oven over owe own owner packet page pain paint pair palace pale pan paper parcel pardon parent park part
partner party pass past path patient pattern pause pay peace pear pen pencil people pepper perfect perform perhaps period permit person
photograph piano pick picture piece pig pillow pilot pin pink pipe place plain plan planet plant plastic plate play please plenty pocket
poem poet point poison pole polite pond pool poor popular port position possible post pot potato pound pour powder power practice praise
pray prefer prepare present president press pretty prevent price pride priest prince print prison private prize problem produce program
promise proof proper protect proud prove public pull pump punish pupil pure purple purpose push puzzle quality quarter queen question quick
quiet quite rabbit race radio rail rain raise range rapid rare rather raw ray reach read ready real reason receive record red reduce refuse
regular remain remember remind remove rent repair repeat reply report rescue rest result return reward rice rich ride right ring rise risk
river road roar rob rock rocket roll roof room root rope rose rough round route row royal rub rubber rude ruin rule run rush rust sad saddle
safe sail salad salt same sand sauce save say scale school science scissors score scratch screen sea search season seat second secret see
seed seem sell send sense sentence separate serious servant serve set settle seven several shade shadow shake shall shape share sharp sheep
sheet shelf shell shelter shine ship shirt shock shoe shoot shop shore short shoulder shout show shut side sight sign silence silk silver
simple since sing single sink sister sit six size skill skin skirt sky sleep slide slow small smell smile smoke smooth snake snow soap
social sock soft soil soldier solid solve some son song soon sorry sort soul sound soup sour south space spade spare speak special speed
spell spend spider spin spirit spite split spoon sport spread spring square stable staff stage stair stamp stand star start state station
stay steal steam steel steep step stick stiff still stir stomach stone stop store storm story stove straight strange stranger straw stream
street strength stretch strike string strong student study stupid subject succeed success such sudden suffer sugar suggest suit summer sun
supper supply support suppose sure surface surprise swallow swan sweep sweet swim swing sword system table tail take talk tall tame tape
taste tax teach teacher tear telephone temper temple ten tender tent term test thank theatre thick thief thin thing think thirst thorn
thought thousand thread threat three throat through throw thumb thunder ticket tide tidy tie tiger tight till time tin tire title today toe
together tomato tomorrow tongue tool tooth top total touch tough tour toward towel tower town toy track trade train translate travel tray
treasure treat tree tribe trick trip trouble true trunk trust truth try tube tune turn twelve twenty twice twist two type ugly uncle under
understand union unit universe until upper upset use usual valley value vast vegetable veil verb verse very victory view village violent
violin visit voice vote voyage wage waist wait wake walk wall wander want war warm warn wash waste watch water wave way weak wealth weapon
wear weather wedding weed week weigh welcome well west wet whale wheat wheel when where whether which while whisper whistle white whole why
wicked wide widow wife wild will win wind window wine wing winter wipe wire wise wish witness wolf woman wonder wood wool word work world
worm worry worth wound wrap wreck wrist write wrong yard year yellow yesterday yet yield young youth zebra""".split()
