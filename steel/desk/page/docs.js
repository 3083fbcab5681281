// The service's own OpenAPI as a page to read.

function make(tag, text = "", ...children) {
  const element = document.createElement(tag);
  element.append(text, ...children);
  return element;
}

const api = await (await fetch("openapi.json")).json();
const look = (schema) => (schema?.$ref ? api.components.schemas[schema.$ref.split("/").pop()] : schema ?? {});

/** An example of a schema, from the examples of its parts. */
function exemplify(given) {
  const schema = look(given);
  if (schema.examples) return schema.examples[0];
  if (schema.default !== undefined) return schema.default;
  if (schema.anyOf) return exemplify(schema.anyOf[0]);
  if (schema.enum) return schema.enum[0];
  if (schema.type === "object") {
    return Object.fromEntries(Object.entries(schema.properties ?? {}).map(([name, part]) => [name, exemplify(part)]));
  }
  if (schema.type === "array") return schema.prefixItems?.map(exemplify) ?? [exemplify(schema.items)];
  return { number: 0.5, integer: 1, boolean: true, null: null }[schema.type] ?? schema.format ?? "text";
}

function tabulate(rows) {
  return make("table", "", ...rows.map((cells) => make("tr", "", ...cells.map((cell) => make("td", cell)))));
}

function describe(path, method, route) {
  const article = make("article", "", make("h3", "", make("code", `${method.toUpperCase()} ${path}`)),
    make("p", route.summary));
  if (route.parameters?.length) {
    article.append(tabulate(route.parameters.map((part) => [part.name, part.description ?? ""])));
  }
  const body = route.requestBody;
  if (body) {
    article.append(make("p", `Takes ${Object.keys(body.content).join(", ")}. ${body.description ?? ""}`));
    const json = body.content["application/json"];
    if (json) article.append(make("pre", JSON.stringify(exemplify(json.schema), null, 2)));
  }
  for (const [status, answer] of Object.entries(route.responses)) {
    article.append(make("p", "", make("strong", status), ` ${answer.description}`));
    const json = answer.content?.["application/json"];
    if (json?.schema && status < 300) article.append(make("pre", JSON.stringify(exemplify(json.schema), null, 2)));
  }
  return article;
}

const docs = document.querySelector("#docs");
docs.prepend(make("h1", api.info.title), make("pre", api.info.description));
for (const [path, methods] of Object.entries(api.paths)) {
  for (const [method, route] of Object.entries(methods)) docs.append(describe(path, method, route));
}
