// The OpenAPI description as a page, without scripts from elsewhere.

const find = (id) => document.getElementById(id);
const make = (name, text = "", className = "") => Object.assign(document.createElement(name), { textContent: text, className });

function resolve(description, schema) {
  return schema?.$ref ? resolve(description, schema.$ref.slice(2).split("/").reduce((place, key) => place[key], description)) : (schema ?? {});
}

function typeOf(schema) {
  if (schema.enum) return schema.enum.join(" | ");
  if (schema.anyOf) return schema.anyOf.map(typeOf).filter((one) => one !== "null").join(" | ");
  return schema.contentMediaType ? "file" : schema.$ref ? schema.$ref.split("/").pop() : schema.type === "array" ? `list of ${typeOf(schema.items ?? {})}` : (schema.type ?? "");
}

function table(rows) {
  const found = make("table");
  for (const cells of rows) {
    const line = found.insertRow();
    cells.forEach((cell, index) => (index ? (line.insertCell().textContent = cell) : line.insertCell().append(make("code", cell))));
  }
  return found;
}

function operation(description, path, method, told) {
  const card = make("section", "", "card"), title = make("h2");
  title.append(make("span", method.toUpperCase(), "method"), make("code", path));
  card.append(title, make("p", told.description ?? told.summary ?? "", "quiet"));
  const form = resolve(description, told.requestBody?.content?.["multipart/form-data"]?.schema);
  if (form.properties) {
    card.append(make("h3", "Fields of the form"));
    card.append(table(Object.entries(form.properties).map(([name, one]) => [name, typeOf(one), form.required?.includes(name) ? "required" : (one.default ?? ""), one.description ?? ""])));
  }
  card.append(make("h3", "Answers"), table(Object.entries(told.responses).map(([status, one]) => [status, one.description])));
  const schema = told.responses["200"]?.content?.["application/json"]?.schema ?? {};
  for (const one of (schema.anyOf ?? [schema]).filter(({ $ref }) => $ref)) {
    const fields = resolve(description, one).properties ?? {};
    card.append(make("h3", one.$ref.split("/").pop()), table(Object.entries(fields).map(([name, field]) => [name, typeOf(field)])));
  }
  return card;
}

try {
  const description = await (await fetch("openapi.json")).json();
  find("curl").textContent =
    `curl -F image=@photo.jpg -F task=instance ${new URL("v1/segment", location.href)}\n` +
    `curl -F image=@photo.jpg -F output=overlay ${new URL("v1/segment", location.href)} -o photo.overlay.png`;
  find("about").textContent = "Where a token is needed: -H 'Authorization: Bearer TOKEN'. An error is {\"error\": \"a sentence\"}.";
  for (const [path, methods] of Object.entries(description.paths)) {
    for (const [method, told] of Object.entries(methods)) find("paths").append(operation(description, path, method, told));
  }
} catch {
  find("error").hidden = false;
  find("error").textContent = "The server does not answer. Is `unimask serve` still running?";
}
