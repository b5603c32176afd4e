"""Eight threads share one model. The weights are in memory once, and each thread gets what it would get
alone."""

from concurrent.futures import ThreadPoolExecutor

import tallow

model = tallow.Model("smollm2")
countries = ["Norway", "Sweden", "Japan", "Egypt", "Greece", "Austria", "Ireland", "Cuba"]


def capital(country: str) -> str:
    seen = "France: Paris\nItaly: Rome\nKenya: Nairobi\n"  # a small model does as it has seen
    return str(model.generate(f"{seen}{country}:", max_tokens=8, stop="\n", temperature=0))


with ThreadPoolExecutor(max_workers=8) as threads:
    together = list(threads.map(capital, countries))

for country, answer in zip(countries, together, strict=True):
    print(f"{country}:{answer}")
print("the same alone:", "yes" if together == [capital(country) for country in countries] else "no")
